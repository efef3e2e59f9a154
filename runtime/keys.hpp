// runtime/keys.hpp: the key material of a cluster.
//
// Data (ZeroMQ) is CURVE: every member has a key pair and every listener an allow-list of public keys, enforced by our
// own ZAP handler, since CURVE alone lets any key in. Control (CAF) is mutual TLS under a certificate authority made for
// this cluster alone, since CAF checks no host names.
//
// The directory: allow.json {"name": "public key (Z85)"…}, ca.pem, and per member NAME.curve (secret key, mode 0600),
// NAME.cert.pem, NAME.key.pem (mode 0600). ca.key.pem (0600) stays with the operator; nodes do not need it.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "runtime/error.hpp"

namespace coppice::runtime {

inline constexpr const char* kClientName = "client";  // the member that infer, bench and status speak as

// CURVE public key (Z85, 40 characters) by member name.
using AllowList = std::map<std::string, std::string>;

struct Identity {
  std::string name;
  std::string public_key, secret_key;  // CURVE, Z85
  std::filesystem::path certificate, private_key, authority;  // PEM files for control
};

// Makes keys for all names and kClientName. Refuses to overwrite unless `replace`; writes into a fresh directory and
// renames it into place, so that a failure leaves nothing half made.
Expected<void> make_keys(const std::filesystem::path& directory, const std::vector<std::string>& names, bool replace);

Expected<Identity> load_identity(const std::filesystem::path& directory, const std::string& name);
Expected<AllowList> load_allow_list(const std::filesystem::path& directory);
// The public key of one member, Z85. Error: names the member and the directory.
Expected<std::string> public_key_of(const AllowList& list, const std::string& name);

}  // namespace coppice::runtime
