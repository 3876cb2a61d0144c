# Kernels want more than the rest of the library. Under sanitizers gcc would take minutes for a
# file of them, and what they check is the same.
if(CMAKE_CXX_FLAGS MATCHES "-fsanitize")
  set(CQKV_KERNEL_OPTIMIZATION -O2)
else()
  set(CQKV_KERNEL_OPTIMIZATION -O3)
endif()
# Every load of a vector would be checked for null and for alignment: half of the time that the
# kernels' tests take. The address sanitizer sees a null pointer, and vectors may lie anywhere.
if(CMAKE_CXX_FLAGS MATCHES "undefined")
  list(APPEND CQKV_KERNEL_OPTIMIZATION -fno-sanitize=null,alignment,object-size)
endif()
# Arithmetic has no paths that a fuzzer could find, and counting them takes longer than it does.
if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=fuzzer")
  list(APPEND CQKV_KERNEL_OPTIMIZATION
    -fno-sanitize-coverage=trace-cmp,edge,inline-8bit-counters,pc-table)
endif()

# cqkv_add_isa_sources(<target> <LEVEL> [NAME name] FLAGS ... SOURCES ...)
#
# Compiles the sources with the flags of one instruction set into <target> and
# defines CQKV_HAVE_<LEVEL>. Only such files get instruction-set flags, so nothing
# else can contain an instruction that the machine lacks (docs/architecture.md).
# NAME tells the object libraries of two folders apart.
function(cqkv_add_isa_sources target level)
  cmake_parse_arguments(arg "" "NAME" "FLAGS;SOURCES" ${ARGN})
  string(TOLOWER ${level} suffix)
  if(arg_NAME)
    string(PREPEND suffix ${arg_NAME}_)
  endif()
  add_library(${target}_${suffix} OBJECT ${arg_SOURCES})
  target_include_directories(${target}_${suffix} PRIVATE
    ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  target_compile_options(${target}_${suffix} PRIVATE ${CQKV_KERNEL_OPTIMIZATION} ${arg_FLAGS})
  target_link_libraries(${target}_${suffix} PRIVATE $<BUILD_INTERFACE:cqkv_numerics> $<BUILD_INTERFACE:cqkv_warnings>)
  set_target_properties(${target}_${suffix} PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${suffix}>)
  target_compile_definitions(${target} PRIVATE CQKV_HAVE_${level}=1)
endfunction()
