# Warnings for our own targets only: linked as $<BUILD_INTERFACE:cqkv_warnings>.
add_library(cqkv_warnings INTERFACE)
target_compile_options(cqkv_warnings INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wold-style-cast -ffp-contract=off)
if(CQKV_WERROR)
  target_compile_options(cqkv_warnings INTERFACE -Werror)
endif()
