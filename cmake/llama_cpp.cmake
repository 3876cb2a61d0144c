# Imported targets over the llama.cpp built by scripts/llama_cpp.sh:
# cqkv_ggml (ggml, ggml-base, ggml-cpu), cqkv_llama (libllama on top of it) and
# cqkv_ggml_internals (ggml's private headers; for src/device alone).
set(_llama_bin ${CQKV_LLAMA_DIR}/build/bin)
foreach(lib ggml-base ggml-cpu ggml llama)
  find_library(CQKV_LIB_${lib} ${lib} PATHS ${_llama_bin} NO_DEFAULT_PATH)
  if(NOT CQKV_LIB_${lib})
    message(FATAL_ERROR "CQKV_LLAMA_DIR=${CQKV_LLAMA_DIR} has no build/bin/lib${lib}.so; "
                        "set it to the folder that scripts/llama_cpp.sh prints")
  endif()
endforeach()

add_library(cqkv_ggml INTERFACE)
target_include_directories(cqkv_ggml SYSTEM INTERFACE ${CQKV_LLAMA_DIR}/src/ggml/include)
target_link_libraries(cqkv_ggml INTERFACE ${CQKV_LIB_ggml} ${CQKV_LIB_ggml-cpu} ${CQKV_LIB_ggml-base})

add_library(cqkv_llama INTERFACE)
target_include_directories(cqkv_llama SYSTEM INTERFACE ${CQKV_LLAMA_DIR}/src/include)
target_link_libraries(cqkv_llama INTERFACE ${CQKV_LIB_llama} cqkv_ggml)

add_library(cqkv_ggml_internals INTERFACE)
target_include_directories(cqkv_ggml_internals SYSTEM INTERFACE ${CQKV_LLAMA_DIR}/src/ggml/src)
target_link_libraries(cqkv_ggml_internals INTERFACE cqkv_ggml)

# The version of ggml, for the device's check of its host.
file(STRINGS ${CQKV_LLAMA_DIR}/src/ggml/CMakeLists.txt _ggml_version_lines
     REGEX "^set\\(GGML_VERSION_(MAJOR|MINOR|PATCH) [0-9]+\\)$")
set(CQKV_GGML_VERSION "")
foreach(line IN LISTS _ggml_version_lines)
  string(REGEX REPLACE ".* ([0-9]+)\\)$" "\\1" number "${line}")
  list(APPEND CQKV_GGML_VERSION ${number})
endforeach()
list(JOIN CQKV_GGML_VERSION "." CQKV_GGML_VERSION)
