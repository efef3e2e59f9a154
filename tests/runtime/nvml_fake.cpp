// A libnvidia-ml.so.1 of two made-up GPUs: three NVLinks between them and two each to an NVSwitch. The types are written
// anew from NVML's API reference, so that they check those of runtime/nvml.cpp.
#include <cstdio>
#include <cstring>

extern "C" {

typedef struct nvmlDevice_st* nvmlDevice_t;
typedef struct {
  char busIdLegacy[16];
  unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
  char busId[32];
} nvmlPciInfo_t;
typedef struct {
  unsigned long long total, free, used;
} nvmlMemory_t;
typedef struct {
  unsigned int fieldId, scopeId;
  long long timestamp, latencyUsec;
  int valueType, nvmlReturn;
  union {
    double dVal;
    unsigned int uiVal;
    unsigned long ulVal;
    unsigned long long ullVal;
    long long sllVal;
  } value;
} nvmlFieldValue_t;

namespace {

constexpr int kInvalidArgument = 2, kNotSupported = 3;

unsigned index_of(nvmlDevice_t device) { return static_cast<unsigned>(reinterpret_cast<unsigned long>(device)) - 1; }

int at(nvmlPciInfo_t* pci, unsigned bus) {
  std::memset(pci, 0, sizeof *pci);
  pci->bus = bus;
  std::snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", bus);
  return 0;
}

}  // namespace

int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned int* count) {
  *count = 2;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t* device) {
  if (index > 1) return kInvalidArgument;
  *device = reinterpret_cast<nvmlDevice_t>(static_cast<unsigned long>(index) + 1);
  return 0;
}
int nvmlDeviceGetName(nvmlDevice_t device, char* name, unsigned int length) {
  std::snprintf(name, length, "Made-up GPU %u", index_of(device));
  return 0;
}
int nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t* pci) { return at(pci, 0x17 + index_of(device)); }
int nvmlDeviceGetMemoryInfo(nvmlDevice_t, nvmlMemory_t* memory) {
  *memory = {80ULL << 30, 79ULL << 30, 1ULL << 30};
  return 0;
}
int nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t, unsigned int* generation) {
  *generation = 5;
  return 0;
}
int nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t, unsigned int* width) {
  *width = 16;
  return 0;
}
int nvmlDeviceGetNvLinkState(nvmlDevice_t, unsigned int link, unsigned int* active) {
  if (link >= 12) return kInvalidArgument;
  *active = link < 5 ? 1 : 0;
  return 0;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t* pci) {
  return at(pci, link < 3 ? 0x17 + 1 - index_of(device) : 0xc0);
}
int nvmlDeviceGetFieldValues(nvmlDevice_t, int count, nvmlFieldValue_t* values) {
  for (int i = 0; i < count; ++i) {
    values[i].nvmlReturn = values[i].fieldId == 90 ? 0 : kNotSupported;
    values[i].valueType = 1;
    values[i].value.uiVal = 25'000;
  }
  return 0;
}

}  // extern "C"
