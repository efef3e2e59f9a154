#include "runtime/keys.hpp"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>

#include "runtime/cluster.hpp"

namespace coppice::runtime {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kZ85Length = 40;
constexpr std::size_t kCurveBytesMax = 256, kPemBytesMax = 64U << 10, kAllowBytesMax = 1U << 20;
constexpr long kYear = 365L * 24 * 3600;
constexpr long kBackdate = 24L * 3600;  // hosts whose clocks lag must accept the certificates too
constexpr const char* kAuthority = "ca.pem";
constexpr const char* kAuthorityKey = "ca.key.pem";
constexpr const char* kAllow = "allow.json";

template <auto Free>
struct Freer {
  template <class T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using Key = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freer<X509_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Freer<X509_EXTENSION_free>>;
using Bio = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using Number = std::unique_ptr<BIGNUM, Freer<BN_free>>;

// Bytes that must not stay behind in freed memory.
struct Secret {
  std::string bytes;
  explicit Secret(std::string text) : bytes(std::move(text)) {}
  ~Secret() { OPENSSL_cleanse(bytes.data(), bytes.size()); }
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;
};

// Thrown and caught in this file alone.
struct Fault {
  Error error;
};

[[noreturn]] void wrong(std::string what) { throw Fault{{ErrorCode::bad_input, std::move(what)}}; }
[[noreturn]] void broke(std::string what) { throw Fault{{ErrorCode::failed, std::move(what)}}; }

template <class T>
T value_of(Expected<T> expected) {
  if (!expected) throw Fault{std::move(expected.error())};
  return *std::move(expected);
}

// For OpenSSL calls that fail only when memory or entropy does.
void must(bool holds, const char* call) {
  if (holds) return;
  std::array<char, 256> text{};
  ERR_error_string_n(ERR_get_error(), text.data(), text.size());
  broke("OpenSSL " + std::string(call) + ": " + text.data());
}

std::string shown(const fs::path& path) { return one_line(path.string()); }

// ---- CURVE ---------------------------------------------------------------------------------------------------------

bool is_z85(std::string_view text) {
  constexpr std::string_view kDigits =
      "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
  return text.size() == kZ85Length && text.find_first_not_of(kDigits) == std::string_view::npos;
}

struct CurvePair {
  std::string public_key, secret_key;
};

CurvePair make_curve_pair() {
  std::array<char, kZ85Length + 1> public_key{}, secret_key{};
  if (zmq_curve_keypair(public_key.data(), secret_key.data()) != 0) {
    broke("this libzmq was built without CURVE, which the cluster's traffic needs");
  }
  CurvePair pair{public_key.data(), secret_key.data()};
  OPENSSL_cleanse(secret_key.data(), secret_key.size());
  return pair;
}

std::optional<std::string> public_part(const std::string& secret_key) {
  std::array<char, kZ85Length + 1> public_key{};
  if (!is_z85(secret_key) || zmq_curve_public(public_key.data(), secret_key.c_str()) != 0) return std::nullopt;
  return std::string(public_key.data());
}

// ---- certificates --------------------------------------------------------------------------------------------------

Key make_key() {
  Key key(EVP_EC_gen("P-256"));
  must(key != nullptr, "EVP_EC_gen");
  return key;
}

void set_serial(X509* certificate) {
  const Number number(BN_new());
  must(number && BN_rand(number.get(), 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1, "BN_rand");
  must(BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr, "BN_to_ASN1_INTEGER");
}

void add_extension(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value));
  must(extension && X509_add_ext(certificate, extension.get(), -1) == 1, "X509_add_ext");
}

// A certificate with all but its extensions and signature.
Certificate blank_certificate(EVP_PKEY* key, const std::string& common_name) {
  Certificate certificate(X509_new());
  must(certificate && X509_set_version(certificate.get(), X509_VERSION_3) == 1, "X509_new");
  set_serial(certificate.get());
  must(X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -kBackdate) != nullptr, "X509_gmtime_adj");
  must(X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 10 * kYear) != nullptr, "X509_gmtime_adj");
  must(X509_set_pubkey(certificate.get(), key) == 1, "X509_set_pubkey");
  const auto* text = reinterpret_cast<const unsigned char*>(common_name.c_str());
  must(X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_UTF8, text, -1, -1, 0) == 1,
       "X509_NAME_add_entry_by_txt");
  return certificate;
}

struct Issued {
  Key key;
  Certificate certificate;
};

Issued make_authority() {
  Issued ca{make_key(), nullptr};
  ca.certificate = blank_certificate(ca.key.get(), "coppice cluster authority");
  X509* const own = ca.certificate.get();
  must(X509_set_issuer_name(own, X509_get_subject_name(own)) == 1, "X509_set_issuer_name");
  add_extension(own, own, NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
  add_extension(own, own, NID_key_usage, "critical,keyCertSign,cRLSign");
  add_extension(own, own, NID_subject_key_identifier, "hash");
  must(X509_sign(own, ca.key.get(), EVP_sha256()) > 0, "X509_sign");
  return ca;
}

Issued make_member(const Issued& ca, const std::string& name) {
  Issued member{make_key(), nullptr};
  member.certificate = blank_certificate(member.key.get(), name);
  X509* const own = member.certificate.get();
  must(X509_set_issuer_name(own, X509_get_subject_name(ca.certificate.get())) == 1, "X509_set_issuer_name");
  add_extension(own, ca.certificate.get(), NID_basic_constraints, "critical,CA:FALSE");
  add_extension(own, ca.certificate.get(), NID_key_usage, "critical,digitalSignature");
  add_extension(own, ca.certificate.get(), NID_ext_key_usage, "serverAuth,clientAuth");
  add_extension(own, ca.certificate.get(), NID_subject_key_identifier, "hash");
  add_extension(own, ca.certificate.get(), NID_authority_key_identifier, "keyid:always");
  must(X509_sign(own, ca.key.get(), EVP_sha256()) > 0, "X509_sign");
  return member;
}

template <class Write>
std::string pem(const Write& write) {
  const Bio bio(BIO_new(BIO_s_mem()));
  must(bio && write(bio.get()) == 1, "PEM_write_bio");
  char* data = nullptr;
  const long length = BIO_get_mem_data(bio.get(), &data);
  std::string text(data, static_cast<std::size_t>(length));
  OPENSSL_cleanse(data, static_cast<std::size_t>(length));
  return text;
}

std::string pem_of(X509* certificate) {
  return pem([&](BIO* bio) { return PEM_write_bio_X509(bio, certificate); });
}

std::string pem_of(EVP_PKEY* key) {
  return pem([&](BIO* bio) { return PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr); });
}

// OpenSSL would ask the terminal for the passphrase of an encrypted key; nodes have no terminal.
int no_passphrase(char*, int, int, void*) { return -1; }

Certificate certificate_from(const std::string& text, const fs::path& file) {
  const Bio bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  Certificate certificate(bio ? PEM_read_bio_X509(bio.get(), nullptr, no_passphrase, nullptr) : nullptr);
  ERR_clear_error();
  if (!certificate) wrong(shown(file) + ": is not a PEM certificate; make the keys again");
  return certificate;
}

Key key_from(const std::string& text, const fs::path& file) {
  const Bio bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  Key key(bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr) : nullptr);
  ERR_clear_error();
  if (!key) wrong(shown(file) + ": is not an unencrypted PEM private key; make the keys again");
  return key;
}

// What CAF would otherwise find out in a failed handshake that says nothing.
void check_certificate(const Identity& identity) {
  const auto read = [](const fs::path& file, bool secret) {
    return value_of(read_file(AT_FDCWD, file, file, {.bytes_max = kPemBytesMax, .secret = secret}));
  };
  const auto certificate = certificate_from(read(identity.certificate, false), identity.certificate);
  const auto authority = certificate_from(read(identity.authority, false), identity.authority);
  const Secret secret(read(identity.private_key, true));
  const auto key = key_from(secret.bytes, identity.private_key);
  const bool paired = X509_check_private_key(certificate.get(), key.get()) == 1;
  const bool issued = X509_verify(certificate.get(), X509_get0_pubkey(authority.get())) == 1;
  ERR_clear_error();
  if (!paired) wrong(shown(identity.private_key) + ": does not belong to " + shown(identity.certificate));
  if (!issued) wrong(shown(identity.certificate) + ": was not issued by " + shown(identity.authority));
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) <= 0) {
    wrong(shown(identity.certificate) + ": has expired; make the keys again");
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate.get())) >= 0) {
    wrong(shown(identity.certificate) + ": is not valid yet; check this machine's clock");
  }
}

// ---- the directory -------------------------------------------------------------------------------------------------

// A directory beside its final place. Removed with all that is in it, unless it was moved away.
class FreshDirectory {
 public:
  explicit FreshDirectory(const fs::path& target) {
    const auto parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
    std::error_code error;
    fs::create_directories(parent, error);
    auto pattern = (parent / ("." + target.filename().string() + ".XXXXXX")).string();
    if (error || !::mkdtemp(pattern.data())) {  // mkdtemp: mode 0700
      broke(shown(parent) + ": cannot make a directory here: " + (error ? error.message() : std::strerror(errno)));
    }
    path_ = pattern;
  }
  ~FreshDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  FreshDirectory(const FreshDirectory&) = delete;
  FreshDirectory& operator=(const FreshDirectory&) = delete;

  const fs::path& path() const { return path_; }

  // The mode is the file's from its first moment on: no umask and no instant in which others could open a secret.
  void write(const std::string& name, std::string_view bytes, mode_t mode) const {
    const auto file = path_ / name;
    const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode & 0600);
    if (fd < 0) broke(shown(file) + ": " + std::strerror(errno));
    bool good = ::fchmod(fd, mode) == 0;
    while (good && !bytes.empty()) {
      const auto written = ::write(fd, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      good = written > 0;
      if (good) bytes.remove_prefix(static_cast<std::size_t>(written));
    }
    good = good && ::fsync(fd) == 0;
    const int error = errno;
    ::close(fd);
    if (!good) broke(shown(file) + ": " + std::strerror(error));
  }

 private:
  fs::path path_;
};

constexpr mode_t kSecretMode = 0600, kPublicMode = 0644;

void write_member(const FreshDirectory& into, const Issued& ca, const std::string& name, nlohmann::json& allow) {
  const auto curve = make_curve_pair();
  const Secret secret(curve.secret_key);
  const auto member = make_member(ca, name);
  const Secret key(pem_of(member.key.get()));
  allow[name] = curve.public_key;
  into.write(name + ".curve", secret.bytes + "\n", kSecretMode);
  into.write(name + ".key.pem", key.bytes, kSecretMode);
  into.write(name + ".cert.pem", pem_of(member.certificate.get()), kPublicMode);
}

void write_all(const FreshDirectory& into, const std::set<std::string>& names) {
  const auto ca = make_authority();
  const Secret key(pem_of(ca.key.get()));
  auto allow = nlohmann::json::object();
  for (const auto& name : names) write_member(into, ca, name, allow);
  into.write(kAuthorityKey, key.bytes, kSecretMode);
  into.write(kAuthority, pem_of(ca.certificate.get()), kPublicMode);
  into.write(kAllow, allow.dump(2) + "\n", kPublicMode);
}

// The members, the client among them. "ca" is refused: its files would be the authority's.
std::set<std::string> checked_members(const std::vector<std::string>& names) {
  std::set<std::string> members{kClientName};
  for (const auto& name : names) {
    const auto quoted = "\"" + one_line(name) + "\"";
    if (!is_plain_name(name)) {
      wrong("keys: member name " + quoted +
            " must be 1 to 64 letters, digits, '.', '_' or '-' and start with none of '.-'");
    }
    if (name == kClientName || name == "ca") wrong("keys: member name " + quoted + " is reserved");
    if (!members.insert(name).second) wrong("keys: member " + quoted + " is named twice");
  }
  return members;
}

bool is_key_material(const fs::directory_entry& entry) {
  const auto name = entry.path().filename().string();
  return name == kAllow || name.ends_with(".pem") || name.ends_with(".curve");
}

// A directory that a replacement deletes must hold nothing but keys: `--keys .` would be a disaster.
void check_replaceable(const fs::path& directory, bool replace) {
  std::error_code error;
  const auto status = fs::symlink_status(directory, error);
  if (!fs::exists(status)) return;
  if (!fs::is_directory(status)) wrong(shown(directory) + ": is there already and is not a directory");
  for (auto entry = fs::directory_iterator(directory, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    if (!replace) wrong(shown(directory) + ": holds files already; name another directory or ask to replace the keys");
    if (!is_key_material(*entry)) {
      wrong(shown(directory) + ": holds " + shown(entry->path().filename()) + ", which is no key; it is not replaced");
    }
  }
  if (error) wrong(shown(directory) + ": cannot be listed: " + error.message());
}

void sync_directory(const fs::path& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

// The exchange leaves no moment without keys; the old ones end in `fresh` and die with it.
void move_into_place(const FreshDirectory& fresh, const fs::path& directory) {
  sync_directory(fresh.path());
  const bool moved = ::rename(fresh.path().c_str(), directory.c_str()) == 0 ||
                     ((errno == EEXIST || errno == ENOTEMPTY) &&
                      ::renameat2(AT_FDCWD, fresh.path().c_str(), AT_FDCWD, directory.c_str(), RENAME_EXCHANGE) == 0);
  if (!moved) broke(shown(directory) + ": cannot move the new keys into place: " + std::strerror(errno));
  sync_directory(directory.has_parent_path() ? directory.parent_path() : fs::path("."));
}

AllowList read_allow_list(const fs::path& directory) {
  const auto file = directory / kAllow;
  if (!fs::exists(file)) wrong(shown(file) + ": No such file; make the cluster's keys first: coppice keys --cluster FILE");
  const auto text = value_of(read_file(AT_FDCWD, file, file, {.bytes_max = kAllowBytesMax}));
  const auto object = nlohmann::json::parse(text, nullptr, false);
  if (!object.is_object()) wrong(shown(file) + ": is not a JSON object of member names and public keys");
  AllowList list;
  std::set<std::string> keys;
  for (const auto& [name, value] : object.items()) {
    const auto member = shown(file) + ": member \"" + one_line(name) + "\": ";
    if (!is_plain_name(name)) wrong(member + "not a member name");
    const auto* key = value.get_ptr<const std::string*>();
    if (!key || !is_z85(*key)) wrong(member + "its public key must be a string of 40 Z85 characters");
    if (!keys.insert(*key).second) wrong(member + "another member has the same public key");
    list.emplace(name, *key);
  }
  if (list.empty()) wrong(shown(file) + ": names no member");
  return list;
}

// The secret key of `file`; it must be the other half of `public_key`.
std::string read_curve_secret(const fs::path& file, const std::string& public_key) {
  auto text = value_of(read_file(AT_FDCWD, file, file, {.bytes_max = kCurveBytesMax, .secret = true}));
  if (text.ends_with('\n')) text.pop_back();
  const auto derived = public_part(text);
  if (!derived) wrong(shown(file) + ": must hold one secret key of 40 Z85 characters");
  if (*derived != public_key)
    wrong(shown(file) + ": does not match its public key in " + kAllow + "; copy both from one directory");
  return text;
}

Identity read_identity(const fs::path& directory, const std::string& name) {
  if (!is_plain_name(name)) wrong("keys: \"" + one_line(name) + "\" is not a member name");
  Identity identity;
  identity.name = name;
  identity.public_key = value_of(public_key_of(read_allow_list(directory), name).map_error([&](Error error) {
    return Error{error.code, shown(directory / kAllow) + ": " + error.what};
  }));
  identity.secret_key = read_curve_secret(directory / (name + ".curve"), identity.public_key);
  identity.certificate = directory / (name + ".cert.pem");
  identity.private_key = directory / (name + ".key.pem");
  identity.authority = directory / kAuthority;
  check_certificate(identity);
  return identity;
}

template <class Do>
auto guarded(const Do& what) -> Expected<decltype(what())> {
  try {
    if constexpr (std::is_void_v<decltype(what())>) {
      what();
      return {};
    } else {
      return what();
    }
  } catch (const Fault& fault) {
    return tl::unexpected(fault.error);
  } catch (const std::exception& error) {
    return failed(std::string("keys: ") + one_line(error.what()));
  }
}

}  // namespace

Expected<void> make_keys(const fs::path& directory, const std::vector<std::string>& names, bool replace) {
  return guarded([&] {
    const auto members = checked_members(names);
    const auto target = directory.has_filename() ? directory : directory.parent_path();  // "keys/"
    if (target.empty() || target.filename() == "." || target.filename() == ".." || target == target.root_path()) {
      wrong("keys: \"" + shown(directory) + "\" cannot be made anew; name a directory of its own");
    }
    check_replaceable(target, replace);
    const FreshDirectory fresh(target);
    write_all(fresh, members);
    move_into_place(fresh, target);
  });
}

Expected<Identity> load_identity(const fs::path& directory, const std::string& name) {
  return guarded([&] { return read_identity(directory, name); });
}

Expected<AllowList> load_allow_list(const fs::path& directory) {
  return guarded([&] { return read_allow_list(directory); });
}

Expected<std::string> public_key_of(const AllowList& list, const std::string& name) {
  const auto at = list.find(name);
  if (at != list.end()) return at->second;
  std::string members;
  for (const auto& [member, key] : list) members += (members.empty() ? "" : ", ") + member;
  return bad_input("no key for member \"" + one_line(name) + "\" (known: " + one_line(members) +
                   "); make the keys again with it: coppice keys");
}

}  // namespace coppice::runtime
