#include "apps/peer_engine.hpp"

#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstdlib>

namespace coppice::apps {
namespace {

using runtime::Expected;
using runtime::failed;

Expected<void*> load(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: neither library bears it
  if (!handle) return failed(std::string("cannot load the peer: ") + dlerror());
  return handle;
}

// ---- ONNX Runtime: a table of functions to which versions only append. Each gives a status, null where all is well
// ----

using Status = void*;
enum OrtEntry : std::size_t {  // places in the table
  kErrorMessage = 2,
  kCreateEnv = 3,
  kCreateSessionFromArray = 8,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSetGraphOptimizationLevel = 23,
  kSetIntraOpThreads = 24,
  kSetInterOpThreads = 25,
  kCreateTensorWithData = 49,
  kCreateCpuMemoryInfo = 69,
  kReleaseEnv = 92,
  kReleaseStatus = 93,
  kReleaseMemoryInfo = 94,
  kReleaseSession = 95,
  kReleaseValue = 96,
  kReleaseSessionOptions = 100,
};
constexpr int kOptimizeAll = 99, kWarnings = 2, kFloat = 1, kArenaAllocator = 1, kDefaultMemory = 0;
constexpr std::uint32_t kOrtVersion = 1;

struct OrtBase {
  const void* const* (*api)(std::uint32_t version);
  const char* (*version)();
};

class OnnxRuntime final : public PeerEngine {
 public:
  OnnxRuntime(const void* const* api, const PeerModel& model)
      : api_(api),
        scores_(static_cast<std::size_t>(model.scores)),
        input_dims_(model.input),
        output_dims_{1, model.scores} {
    input_dims_.insert(input_dims_.begin(), 1);
  }
  ~OnnxRuntime() override {
    const auto release = [&](OrtEntry entry, void* what) {
      if (what) call<void (*)(void*)>(entry)(what);
    };
    release(kReleaseValue, output_);
    release(kReleaseMemoryInfo, memory_);
    release(kReleaseSession, session_);
    release(kReleaseSessionOptions, options_);
    release(kReleaseEnv, env_);
  }

  Expected<void> open(const PeerModel& model) {
    Status s = call<Status (*)(int, const char*, void**)>(kCreateEnv)(kWarnings, "coppice", &env_);
    if (!s) s = call<Status (*)(void**)>(kCreateSessionOptions)(&options_);
    if (!s) s = call<Status (*)(void*, int)>(kSetIntraOpThreads)(options_, model.threads);
    if (!s) s = call<Status (*)(void*, int)>(kSetInterOpThreads)(options_, 1);
    if (!s) s = call<Status (*)(void*, int)>(kSetGraphOptimizationLevel)(options_, kOptimizeAll);
    if (!s)
      s = call<Status (*)(void*, const void*, std::size_t, void*, void**)>(kCreateSessionFromArray)(
          env_, model.onnx.data(), model.onnx.size(), options_, &session_);
    if (!s) s = call<Status (*)(int, int, void**)>(kCreateCpuMemoryInfo)(kArenaAllocator, kDefaultMemory, &memory_);
    if (!s) s = tensor(scores_.data(), scores_.size(), output_dims_, &output_);
    return outcome(s);
  }

  Expected<std::span<const float>> run(std::span<const float> input) override {
    static constexpr std::array kIn{"image"}, kOut{"scores"};
    void* value = nullptr;
    Status s = tensor(const_cast<float*>(input.data()), input.size(), input_dims_, &value);
    if (!s)
      s = call<Status (*)(void*, const void*, const char* const*, void* const*, std::size_t, const char* const*,
                          std::size_t, void**)>(kRun)(session_, nullptr, kIn.data(), &value, 1, kOut.data(), 1,
                                                      &output_);
    if (value) call<void (*)(void*)>(kReleaseValue)(value);
    if (auto ran = outcome(s); !ran) return tl::unexpected(ran.error());
    return std::span<const float>(scores_);
  }

 private:
  template <class Function>
  Function call(OrtEntry entry) const {
    return reinterpret_cast<Function>(const_cast<void*>(api_[entry]));
  }
  Status tensor(float* data, std::size_t count, const gpu::Dims& dims, void** made) const {
    return call<Status (*)(const void*, void*, std::size_t, const std::int64_t*, std::size_t, int, void**)>(
        kCreateTensorWithData)(memory_, data, count * sizeof(float), dims.data(), dims.size(), kFloat, made);
  }
  Expected<void> outcome(Status status) const {
    if (!status) return {};
    const std::string what = call<const char* (*)(Status)>(kErrorMessage)(status);
    call<void (*)(Status)>(kReleaseStatus)(status);
    return failed("ONNX Runtime: " + what);
  }

  const void* const* api_;
  std::vector<float> scores_;
  gpu::Dims input_dims_, output_dims_;
  void *env_ = nullptr, *options_ = nullptr, *session_ = nullptr, *memory_ = nullptr, *output_ = nullptr;
};

// ---- OpenVINO: plain functions. Each gives a status, 0 where all is well ----

struct OvRange {
  std::int64_t low, high;
};
struct OvPartialShape {
  OvRange rank;
  OvRange* dims;
};

class OpenVino final : public PeerEngine {
 public:
  OpenVino(void* library, const PeerModel& model)
      : library_(library), scores_(static_cast<std::size_t>(model.scores)) {}
  ~OpenVino() override {
    const auto release = [&](const char* name, void* what) {
      if (what) call<void (*)(void*)>(name)(what);
    };
    release("ov_tensor_free", output_);
    release("ov_tensor_free", input_);
    release("ov_infer_request_free", request_);
    release("ov_compiled_model_free", compiled_);
    release("ov_model_free", model_);
    release("ov_core_free", core_);
  }

  Expected<void> open(const PeerModel& model) {
    std::vector<OvRange> dims{{1, 1}};
    for (const auto dim : model.input) dims.push_back({dim, dim});
    const auto rank = static_cast<std::int64_t>(dims.size());
    const std::string threads = std::to_string(model.threads);
    int s = call<int (*)(void**)>("ov_core_create")(&core_);
    if (s == 0)
      s = call<int (*)(void*, const char*, std::size_t, const void*, void**)>("ov_core_read_model_from_memory_buffer")(
          core_, reinterpret_cast<const char*>(model.onnx.data()), model.onnx.size(), nullptr, &model_);
    if (s == 0)
      s = call<int (*)(void*, OvPartialShape)>("ov_model_reshape_single_input")(model_, {{rank, rank}, dims.data()});
    // Float32 is asked for by name: on some processors the default is bfloat16.
    if (s == 0)
      s = call<int (*)(void*, const void*, const char*, std::size_t, void**, ...)>("ov_core_compile_model")(
          core_, model_, "CPU", 8, &compiled_, "INFERENCE_NUM_THREADS", threads.c_str(), "PERFORMANCE_HINT", "LATENCY",
          "INFERENCE_PRECISION_HINT", "f32", "NUM_STREAMS", "1");
    if (s == 0) s = call<int (*)(void*, void**)>("ov_compiled_model_create_infer_request")(compiled_, &request_);
    if (s == 0) s = call<int (*)(void*, void**)>("ov_infer_request_get_input_tensor")(request_, &input_);
    if (s == 0) s = call<int (*)(void*, void**)>("ov_infer_request_get_output_tensor")(request_, &output_);
    return outcome(s);
  }

  Expected<std::span<const float>> run(std::span<const float> input) override {
    void *in = nullptr, *out = nullptr;
    int s = data_(input_, &in);
    if (s == 0) std::copy(input.begin(), input.end(), static_cast<float*>(in));
    if (s == 0) s = infer_(request_);
    if (s == 0) s = data_(output_, &out);
    if (auto ran = outcome(s); !ran) return tl::unexpected(ran.error());
    return std::span<const float>(static_cast<const float*>(out), scores_);
  }

 private:
  template <class Function>
  Function call(const char* name) const {
    return reinterpret_cast<Function>(dlsym(library_, name));
  }
  Expected<void> outcome(int status) const {
    if (status == 0) return {};
    const auto message = call<const char* (*)()>("ov_get_last_err_msg");
    return failed("OpenVINO: status " + std::to_string(status) + (message ? std::string(": ") + message() : ""));
  }

  void* library_;
  std::size_t scores_;
  int (*data_)(void*, void**) = call<int (*)(void*, void**)>("ov_tensor_data");
  int (*infer_)(void*) = call<int (*)(void*)>("ov_infer_request_infer");
  void *core_ = nullptr, *model_ = nullptr, *compiled_ = nullptr, *request_ = nullptr, *input_ = nullptr,
       *output_ = nullptr;
};

}  // namespace

Expected<std::unique_ptr<PeerEngine>> onnxruntime_engine(const std::string& library, const PeerModel& model) {
  const auto handle = load(library);
  if (!handle) return tl::unexpected(handle.error());
  const auto base = reinterpret_cast<const OrtBase* (*)()>(dlsym(*handle, "OrtGetApiBase"));
  const void* const* api = base ? base()->api(kOrtVersion) : nullptr;
  if (!api) return failed(library + " is not ONNX Runtime");
  auto engine = std::make_unique<OnnxRuntime>(api, model);
  if (auto opened = engine->open(model); !opened) return tl::unexpected(opened.error());
  return engine;
}

Expected<std::unique_ptr<PeerEngine>> openvino_engine(const std::string& library, const PeerModel& model) {
  const auto handle = load(library);
  if (!handle) return tl::unexpected(handle.error());
  if (!dlsym(*handle, "ov_core_create")) return failed(library + " is not OpenVINO's C library");
  auto engine = std::make_unique<OpenVino>(*handle, model);
  if (auto opened = engine->open(model); !opened) return tl::unexpected(opened.error());
  return engine;
}

std::optional<std::string> find_peer(const std::string& given, const std::string& name) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  fs::path root = given;
  if (given.empty()) {
    const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
    root = (cache && *cache ? fs::path(cache) : fs::path(home ? home : "") / ".cache") / "coppice" / "peers";
  } else if (!fs::is_directory(root, ignored)) {
    return given;  // the loader says what is wrong with it
  }
  for (auto it = fs::recursive_directory_iterator(root, ignored); !ignored && it != fs::end(it); it.increment(ignored))
    if (it->path().filename().string().starts_with(name + ".so")) return it->path().string();
  return std::nullopt;
}

}  // namespace coppice::apps
