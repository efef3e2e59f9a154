#include "runtime/keys.hpp"

#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <rapidcheck/gtest.h>
#include <sys/stat.h>
#include <zmq.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

namespace coppice::runtime {
namespace {

namespace fs = std::filesystem;

class Keys : public testing::Test {
 protected:
  Keys() {
    auto pattern = (fs::temp_directory_path() / "coppice-keys-XXXXXX").string();
    scratch_ = ::mkdtemp(pattern.data());
    keys_ = scratch_ / "keys";
  }
  ~Keys() override { fs::remove_all(scratch_); }

  void make(const std::vector<std::string>& names = {"h0", "h1"}) {
    const auto made = make_keys(keys_, names, false);
    ASSERT_TRUE(made) << made.error().what;
  }
  static std::string read(const fs::path& file) {
    std::ostringstream text;
    text << std::ifstream(file, std::ios::binary).rdbuf();
    return text.str();
  }
  // In place: ext4 flushes a file that is truncated to nothing and written again, 2,000 times here.
  static void write(const fs::path& file, const std::string& text) {
    if (!fs::exists(file)) std::ofstream(file, std::ios::binary) << "";
    std::fstream(file, std::ios::binary | std::ios::in | std::ios::out) << text;
    fs::resize_file(file, text.size());
  }
  static mode_t mode(const fs::path& file) {
    struct stat status {};
    EXPECT_EQ(::stat(file.c_str(), &status), 0) << file;
    return status.st_mode & 07777;
  }
  // The error of loading h0, which must name `file` and say `says`.
  void expect_refused(const std::string& file, const std::string& says) const {
    const auto identity = load_identity(keys_, "h0");
    ASSERT_FALSE(identity) << file << " " << says;
    EXPECT_EQ(identity.error().code, ErrorCode::bad_input);
    const auto& what = identity.error().what;
    EXPECT_TRUE(what.starts_with((keys_ / file).string() + ": ")) << what;
    EXPECT_NE(what.find(says), std::string::npos) << what;
  }

  fs::path scratch_, keys_;
};

X509* certificate(const fs::path& file) {
  FILE* stream = std::fopen(file.c_str(), "r");
  X509* read = PEM_read_X509(stream, nullptr, nullptr, nullptr);
  std::fclose(stream);
  return read;
}

TEST_F(Keys, EveryMemberLoadsAndTheKeysBelongTogether) {
  make();
  const auto list = load_allow_list(keys_);
  ASSERT_TRUE(list) << list.error().what;
  EXPECT_EQ(list->size(), 3U);
  for (const std::string name : {"h0", "h1", kClientName}) {
    const auto identity = load_identity(keys_, name);
    ASSERT_TRUE(identity) << identity.error().what;
    EXPECT_EQ(identity->name, name);
    EXPECT_EQ(identity->public_key, list->at(name));
    EXPECT_EQ(identity->public_key, public_key_of(*list, name).value());
    std::array<char, 41> derived{};
    ASSERT_EQ(zmq_curve_public(derived.data(), identity->secret_key.c_str()), 0);
    EXPECT_EQ(identity->public_key, derived.data());
    EXPECT_TRUE(fs::exists(identity->certificate) && fs::exists(identity->private_key) &&
                fs::exists(identity->authority));
  }
  EXPECT_NE(list->at("h0"), list->at("h1"));
}

TEST_F(Keys, SecretsAreTheOwnersAloneWhateverTheUmask) {
  const auto before = ::umask(0);
  make();
  ::umask(before);
  for (const char* secret : {"h0.curve", "h0.key.pem", "client.curve", "client.key.pem", "ca.key.pem"}) {
    EXPECT_EQ(mode(keys_ / secret), 0600U) << secret;
  }
  for (const char* open : {"allow.json", "ca.pem", "h0.cert.pem"}) EXPECT_EQ(mode(keys_ / open), 0644U) << open;
  EXPECT_EQ(mode(keys_), 0700U);
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch_), fs::directory_iterator()), 1);  // nothing half made is left
}

TEST_F(Keys, CertificatesAreOfThisAuthorityForBothSidesAndTenYears) {
  make();
  X509* const ca = certificate(keys_ / "ca.pem");
  X509* const member = certificate(keys_ / "h0.cert.pem");
  X509* const other = certificate(keys_ / "h1.cert.pem");
  ASSERT_TRUE(ca && member && other);
  EXPECT_EQ(X509_check_ca(ca), 1);
  EXPECT_EQ(X509_check_ca(member), 0);
  EXPECT_EQ(X509_verify(ca, X509_get0_pubkey(ca)), 1);
  for (const int purpose : {X509_PURPOSE_SSL_CLIENT, X509_PURPOSE_SSL_SERVER}) {
    EXPECT_EQ(X509_check_purpose(member, purpose, 0), 1);
    X509_STORE* const store = X509_STORE_new();
    X509_STORE_add_cert(store, ca);
    X509_STORE_CTX* const context = X509_STORE_CTX_new();
    X509_STORE_CTX_init(context, store, member, nullptr);
    X509_STORE_CTX_set_purpose(context, purpose);
    EXPECT_EQ(X509_verify_cert(context), 1) << X509_verify_cert_error_string(X509_STORE_CTX_get_error(context));
    X509_STORE_CTX_free(context);
    X509_STORE_free(store);
  }
  EXPECT_NE(ASN1_INTEGER_cmp(X509_get0_serialNumber(member), X509_get0_serialNumber(other)), 0);
  int days = 0, seconds = 0;
  ASSERT_EQ(ASN1_TIME_diff(&days, &seconds, nullptr, X509_get0_notAfter(member)), 1);
  EXPECT_GE(days, 3649);
  EXPECT_LE(days, 3650);
  EXPECT_LT(X509_cmp_current_time(X509_get0_notBefore(member)), 0);
  for (X509* each : {ca, member, other}) X509_free(each);
}

TEST_F(Keys, ReplacesOnlyWhenAskedAndOnlyKeys) {
  make();
  const auto before = read(keys_ / "allow.json");
  const auto again = make_keys(keys_, {"h0"}, false);
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().what.find(keys_.string()), std::string::npos);
  EXPECT_EQ(read(keys_ / "allow.json"), before);

  ASSERT_TRUE(make_keys(keys_, {"h0"}, true));
  EXPECT_NE(read(keys_ / "allow.json"), before);
  EXPECT_TRUE(load_identity(keys_, "h0"));
  EXPECT_FALSE(fs::exists(keys_ / "h1.curve"));
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch_), fs::directory_iterator()), 1);

  write(keys_ / "thesis.tex", "years of work");
  const auto refused = make_keys(keys_, {"h0"}, true);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().what.find("thesis.tex"), std::string::npos) << refused.error().what;
  EXPECT_EQ(read(keys_ / "thesis.tex"), "years of work");
}

TEST_F(Keys, TakesAnEmptyDirectoryAndATrailingSlashButNoFile) {
  fs::create_directory(keys_);
  EXPECT_TRUE(make_keys(keys_ / "", {"h0"}, false));
  EXPECT_TRUE(load_identity(keys_, "h0"));
  write(scratch_ / "file", "");
  const auto refused = make_keys(scratch_ / "file", {"h0"}, true);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().what.find("not a directory"), std::string::npos);
  EXPECT_FALSE(make_keys(scratch_ / "file" / "keys", {"h0"}, false));
  EXPECT_FALSE(make_keys(".", {"h0"}, true));
  EXPECT_FALSE(make_keys("/", {"h0"}, true));
}

TEST_F(Keys, RefusesNamesThatAreNotPlain) {
  for (const char* name : {"", ".", "../h0", "a/b", "-h", "client", "ca"}) {
    const auto made = make_keys(keys_, {name}, false);
    ASSERT_FALSE(made) << name;
    EXPECT_NE(made.error().what.find("\"" + std::string(name) + "\""), std::string::npos) << made.error().what;
    EXPECT_FALSE(fs::exists(keys_));
  }
  EXPECT_FALSE(make_keys(keys_, {"h0", "h0"}, false));
  make();
  EXPECT_FALSE(load_identity(keys_, "../keys/h0"));
}

TEST_F(Keys, RefusesSecretsThatOthersMayRead) {
  make();
  for (const char* secret : {"h0.curve", "h0.key.pem"}) {
    for (const mode_t loose : {0640, 0604, 0610}) {
      ::chmod((keys_ / secret).c_str(), loose);
      expect_refused(secret, "chmod 600 " + (keys_ / secret).string());
    }
    ::chmod((keys_ / secret).c_str(), 0400);
    EXPECT_TRUE(load_identity(keys_, "h0"));
  }
}

TEST_F(Keys, RefusesKeysThatDoNotBelongTogether) {
  make();
  const auto swap = [&](const char* file, const char* with, const std::string& blamed, const std::string& says) {
    const auto before = read(keys_ / file);
    write(keys_ / file, read(keys_ / with));
    expect_refused(blamed, says);
    write(keys_ / file, before);
    EXPECT_TRUE(load_identity(keys_, "h0"));
  };
  swap("h0.curve", "h1.curve", "h0.curve", "does not match its public key");
  swap("h0.key.pem", "h1.key.pem", "h0.key.pem", "does not belong to");
  swap("h0.cert.pem", "h1.cert.pem", "h0.key.pem", "does not belong to");
  swap("ca.pem", "h1.cert.pem", "h0.cert.pem", "was not issued by");
}

TEST_F(Keys, RefusesDamagedFilesByName) {
  make();
  const auto damage = [&](const char* file, const std::string& text, const std::string& says) {
    const auto before = read(keys_ / file);
    write(keys_ / file, text);
    expect_refused(file, says);
    fs::remove(keys_ / file);
    expect_refused(file, "No such file");
    write(keys_ / file, before);
    ::chmod((keys_ / file).c_str(), 0600);
    EXPECT_TRUE(load_identity(keys_, "h0"));
  };
  damage("h0.curve", "short", "40 Z85 characters");
  damage("h0.curve", std::string(40, '\''), "40 Z85 characters");
  damage("h0.curve", std::string(10'000, 'a'), "larger than");
  damage("h0.key.pem", "nonsense", "is not an unencrypted PEM private key");
  damage("h0.cert.pem", "nonsense", "is not a PEM certificate");
  damage("h0.cert.pem", std::string(1U << 20, 'a'), "larger than");
  damage("ca.pem", "", "is not a PEM certificate");
  damage("allow.json", "{", "JSON object");
  damage("allow.json", "[]", "JSON object");
  damage("allow.json", std::string(1'000'000, '['), "JSON object");
  damage("allow.json", "{}", "names no member");
  damage("allow.json", "{\"h0\": 1}", "member \"h0\": its public key");
  damage("allow.json", "{\"h0\": \"abc\"}", "member \"h0\": its public key");
  damage("allow.json", "{\"../h0\": \"" + std::string(40, 'a') + "\"}", "member \"../h0\": not a member name");
  damage("allow.json", nlohmann::json{{"a", std::string(40, 'a')}, {"b", std::string(40, 'a')}}.dump(),
         "same public key");
  damage("allow.json", nlohmann::json{{"a", std::string(40, 'a')}}.dump(), "no key for member \"h0\" (known: a)");
}

TEST_F(Keys, MutatedFilesNeverCrash) {
  constexpr unsigned kSeed = 99;
  SCOPED_TRACE("SEED=" + std::to_string(kSeed));
  make();
  std::mt19937 random(kSeed);
  const auto below = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random); };
  for (const char* file : {"allow.json", "h0.curve", "h0.cert.pem", "h0.key.pem", "ca.pem"}) {
    const auto before = read(keys_ / file);
    for (int round = 0; round < 400; ++round) {
      auto text = before;
      for (std::size_t edits = 1 + below(3); edits > 0; --edits)
        text[below(text.size())] = static_cast<char>(below(256));
      write(keys_ / file, text);
      if (const auto identity = load_identity(keys_, "h0"); !identity) {
        ASSERT_TRUE(identity.error().what.starts_with(keys_.string())) << identity.error().what;
      }
    }
    write(keys_ / file, before);
  }
  EXPECT_TRUE(load_identity(keys_, "h0"));
}

RC_GTEST_PROP(PublicKeyOf, FindsWhatTheListHoldsAndNamesWhatItLacks, (const AllowList& list, const std::string& name)) {
  const auto key = public_key_of(list, name);
  RC_ASSERT(key.has_value() == list.contains(name));
  if (key) RC_ASSERT(*key == list.at(name));
}

}  // namespace
}  // namespace coppice::runtime
