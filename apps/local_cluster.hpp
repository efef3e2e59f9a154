// apps/local_cluster.hpp: a cluster on this machine's loopback, made in a directory: its file, its keys, free ports.
#pragma once

#include <filesystem>
#include <string>

#include "runtime/cluster.hpp"
#include "runtime/model.hpp"

namespace coppice::apps {

struct LocalCluster {
  runtime::Cluster cluster;
  std::filesystem::path file;  // the cluster file
  std::filesystem::path logs;
};

// A gateway "gateway" and workers "w0" …, serving the model of `model_directory`, with faults allowed. Everything is
// written under `directory`, which is made anew.
runtime::Expected<LocalCluster> make_local_cluster(const std::filesystem::path& directory,
                                                   const std::filesystem::path& model_directory,
                                                   const runtime::Manifest& manifest);

}  // namespace coppice::apps
