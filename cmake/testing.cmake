# cqkv_add_test(<name> SOURCES ... [LIBS ...] [LABELS ...] [TIMEOUT seconds])
#
# One GoogleTest program, registered as one ctest test.
if(CQKV_BUILD_TESTS)
  enable_testing()
  find_package(GTest REQUIRED)
endif()

function(cqkv_add_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;LIBS;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${name} PRIVATE ${arg_LIBS} GTest::gtest GTest::gtest_main
    $<BUILD_INTERFACE:cqkv_numerics> $<BUILD_INTERFACE:cqkv_warnings>)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 600)
    if(CMAKE_CXX_FLAGS MATCHES "-fsanitize")
      set(arg_TIMEOUT 1500)  # on a slow machine, beside another test
    endif()
  endif()
  if(NOT arg_LABELS)
    set(arg_LABELS unit)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT})
endfunction()
