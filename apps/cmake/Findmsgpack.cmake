# msgpack-c for C++, a header, without Boost. Defines msgpack::msgpack.
find_path(msgpack_INCLUDE_DIR msgpack.hpp)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(msgpack
  REQUIRED_VARS msgpack_INCLUDE_DIR REASON_FAILURE_MESSAGE "install libmsgpack-cxx-dev (bash apps/deps does)")
if(msgpack_FOUND AND NOT TARGET msgpack::msgpack)
  add_library(msgpack::msgpack INTERFACE IMPORTED GLOBAL)
  set_target_properties(msgpack::msgpack PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${msgpack_INCLUDE_DIR}" INTERFACE_COMPILE_DEFINITIONS MSGPACK_NO_BOOST)
endif()
