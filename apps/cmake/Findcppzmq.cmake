# cppzmq, a header; Debian's own CMake file asks for a libzmq package that Debian does not have. Defines cppzmq::cppzmq.
find_package(ZeroMQ 4.3.4 REQUIRED)
find_path(cppzmq_INCLUDE_DIR zmq.hpp)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(cppzmq
  REQUIRED_VARS cppzmq_INCLUDE_DIR REASON_FAILURE_MESSAGE "install cppzmq-dev (bash apps/deps does)")
if(cppzmq_FOUND AND NOT TARGET cppzmq::cppzmq)
  add_library(cppzmq::cppzmq INTERFACE IMPORTED GLOBAL)
  set_target_properties(cppzmq::cppzmq PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${cppzmq_INCLUDE_DIR}" INTERFACE_LINK_LIBRARIES ZeroMQ::ZeroMQ)
endif()
