# The library for others: libcqkv.a with the C++ and the C interface, libcqkv.so with the C
# interface alone, their headers, and how CMake and pkg-config find them.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(public_headers cqkv.h cqkv/basis.h cqkv/codebook.h cqkv/codebook_file.h cqkv/isa.h
  cqkv/status.h cqkv/types.h)
list(TRANSFORM public_headers PREPEND ${PROJECT_SOURCE_DIR}/include/)
target_sources(cqkv PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR}/include
  FILES ${public_headers})
# Each public header compiles alone: all_verify_interface_header_sets.
set_target_properties(cqkv PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
target_compile_features(cqkv PUBLIC cxx_std_20)

# What the linker script names leaves the library, and nothing else of what is in it.
add_library(cqkv_shared SHARED ${PROJECT_SOURCE_DIR}/src/capi/cqkv_c.cpp)
add_library(cqkv::shared ALIAS cqkv_shared)
target_compile_definitions(cqkv_shared PRIVATE CQKV_VERSION="${PROJECT_VERSION}")
target_include_directories(cqkv_shared
  PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>
  PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(cqkv_shared PRIVATE $<BUILD_INTERFACE:cqkv> $<BUILD_INTERFACE:cqkv_numerics> $<BUILD_INTERFACE:cqkv_warnings>)
set(symbols ${PROJECT_SOURCE_DIR}/cmake/cqkv.map)
target_link_options(cqkv_shared PRIVATE LINKER:--version-script=${symbols})
set_target_properties(cqkv_shared PROPERTIES OUTPUT_NAME cqkv EXPORT_NAME shared
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR} LINK_DEPENDS ${symbols})

install(TARGETS cqkv cqkv_shared EXPORT cqkv FILE_SET HEADERS)
set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/cqkv)
install(EXPORT cqkv NAMESPACE cqkv:: FILE cqkv-targets.cmake DESTINATION ${config_folder})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/cqkv-config.cmake.in
  ${PROJECT_BINARY_DIR}/cqkv-config.cmake INSTALL_DESTINATION ${config_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cqkv-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cqkv-config.cmake
  ${PROJECT_BINARY_DIR}/cqkv-config-version.cmake DESTINATION ${config_folder})

# A prefix that is moved stays right: it is found from where the file lies.
file(RELATIVE_PATH pc_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${PROJECT_SOURCE_DIR}/cmake/cqkv.pc.in ${PROJECT_BINARY_DIR}/cqkv.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/cqkv.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
