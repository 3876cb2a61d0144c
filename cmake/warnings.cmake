# Warnings for our own targets only: linked as $<BUILD_INTERFACE:cqkv_warnings>.
add_library(cqkv_warnings INTERFACE)
target_compile_options(cqkv_warnings INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wold-style-cast)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 reports overlapping copies inside std::string at -O3 (GCC bug 105651).
  target_compile_options(cqkv_warnings INTERFACE -Wno-restrict)
endif()
if(CQKV_WERROR)
  target_compile_options(cqkv_warnings INTERFACE -Werror)
endif()
