#include "runtime/wire.hpp"

#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "runtime/msgpack.hpp"

namespace coppice::runtime {
namespace {

using namespace actors;

static_assert(std::endian::native == std::endian::little, "floats travel as they lie in memory");

using Packer = msgpack::packer<msgpack::sbuffer>;

// ---- writing -------------------------------------------------------------------------------------------------------

std::vector<std::byte> raw(std::span<const float> floats) {
  std::vector<std::byte> bytes(floats.size_bytes());
  if (!bytes.empty()) std::memcpy(bytes.data(), floats.data(), bytes.size());
  return bytes;
}

void pack_floats(Packer& pk, std::span<const float> floats) {  // small runs, inside the head
  pk.pack_bin(static_cast<std::uint32_t>(floats.size_bytes()));
  pk.pack_bin_body(reinterpret_cast<const char*>(floats.data()), static_cast<std::uint32_t>(floats.size_bytes()));
}

template <class Enum>
std::uint64_t number(Enum value) {
  return static_cast<std::uint64_t>(value);
}

void pack_program(Packer& pk, const collectives::Program& program);
void pack_edges(Packer& pk, const std::vector<collectives::RankEdge>& edges);

struct Writer {
  Packer& pk;
  std::vector<std::byte>& bulk;
  SharedBytes& shared;

  // Each opens the array with the number of its fields; decode's readers below mirror them one for one.
  void begin(std::uint32_t type, std::uint32_t fields) {
    pk.pack_array(fields + 2);
    pk.pack(kVersion);
    pk.pack(type);
  }
  void operator()(const InferRequest& m) {
    begin(0, 2);
    pk.pack(m.tag);
    pk.pack(m.record);
    if (m.item) bulk = raw(*m.item);
  }
  void operator()(const WorkItem& m) {
    begin(1, 3);
    pk.pack(number(m.request));
    pk.pack(number(m.epoch));
    pk.pack(m.worker);
    if (m.item) bulk = raw(*m.item);
  }
  void operator()(const CodedResponse& m) {
    begin(2, 4);
    pk.pack(number(m.request));
    pk.pack(number(m.epoch));
    pk.pack(m.worker);
    pk.pack(m.service_us);
    bulk = raw(m.values);
  }
  void operator()(const InferReply& m) {
    begin(3, 11);
    pk.pack(m.tag);
    pk.pack(m.request);
    pk.pack(m.epoch);
    pk.pack(static_cast<std::uint8_t>(m.status));
    pk.pack(m.label);
    real(m.margin);
    real(m.probability);
    pk.pack(m.gateway_us);
    pack_floats(pk, m.scores);
    arrivals(m.arrivals);
    pk.pack(m.error);
  }
  void real(float value) { pk.pack(std::bit_cast<std::uint32_t>(value)); }
  void arrivals(const std::vector<ArrivalRecord>& records) {
    pk.pack_array(static_cast<std::uint32_t>(records.size()));
    for (const auto& arrival : records) {
      pk.pack_array(3);
      pk.pack(arrival.worker);
      pk.pack(arrival.at_us);
      pack_floats(pk, arrival.values);
    }
  }
  void operator()(const TransferOpen& m) {
    begin(4, 6);
    pk.pack(number(m.transfer));
    pk.pack(number(m.epoch));
    pk.pack(m.bytes);
    pk.pack(m.chunk_bytes);
    pk.pack(m.sha256);
    pk.pack_array(static_cast<std::uint32_t>(m.tree.size()));
    for (const auto& node : m.tree) {
      pk.pack_array(2);
      pk.pack(node.name);
      pk.pack(node.parent);
    }
  }
  void operator()(const WeightChunk& m) {
    begin(5, 2);
    pk.pack(number(m.transfer));
    pk.pack(m.index);
    if (m.bytes) bulk = *m.bytes;
  }
  void operator()(const ChunkAck& m) {
    begin(6, 2);
    pk.pack(number(m.transfer));
    pk.pack(m.received);
  }
  void operator()(const StatusRequest& m) {
    begin(7, 1);
    pk.pack(m.tag);
  }
  void operator()(const FaultRequest& m) {
    begin(8, 2);
    pk.pack(m.tag);
    pk.pack(m.spec);
  }
  void operator()(const TextReply& m) {
    begin(9, 3);
    pk.pack(m.tag);
    pk.pack(m.text);
    pk.pack(m.error);
  }
  void operator()(const CollectiveChunk& m) {
    begin(10, 7);
    run(m.run);
    pk.pack(m.kind);
    pk.pack(m.session);
    pk.pack(m.tree);
    pk.pack(number(m.way));
    pk.pack(m.index);
    shared = m.bytes;
  }
  void operator()(const CollectiveAck& m) {
    begin(11, 8);
    ack(m);
  }
  void operator()(const CollectiveAcks& m) {
    begin(17, 1);
    pk.pack_array(static_cast<std::uint32_t>(m.acks.size()));
    for (const auto& each : m.acks) {
      pk.pack_array(8);
      ack(each);
    }
  }
  void ack(const CollectiveAck& m) {
    run(m.run);
    pk.pack(m.kind);
    pk.pack(m.session);
    pk.pack(m.tree);
    pk.pack(number(m.way));
    pk.pack(m.consumed);
    pk.pack(m.arrived);
  }
  void operator()(const BlockItem& m) {
    begin(14, 6);
    pk.pack(number(m.request));
    pk.pack(number(m.epoch));
    pk.pack(m.block);
    pk.pack(m.asked);
    pk.pack(m.patience_us);
    pk.pack(m.record);
    if (m.item) bulk = raw(*m.item);
  }
  void operator()(const BlockScore& m) {
    begin(15, 10);
    pk.pack(number(m.request));
    pk.pack(number(m.epoch));
    pk.pack(m.block);
    pk.pack(static_cast<std::uint8_t>(m.status));
    pk.pack(m.label);
    real(m.score);
    real(m.runner_up);
    real(m.log_sum_exp);
    pk.pack(m.head_us);
    arrivals(m.arrivals);
  }
  void operator()(const WorkerGone& m) {
    begin(16, 1);
    pk.pack(m.worker);
  }
  void operator()(const GroupNote& m) {
    begin(12, 7);
    pk.pack(m.origin);
    pk.pack(m.session);
    pk.pack(m.number);
    pk.pack(m.target);
    pk.pack(m.flood);
    pk.pack(static_cast<std::uint8_t>(m.note.index()));
    std::visit([&](const auto& note) { pack_note(note); }, m.note);
  }
  void pack_note(const ProgramOffer& m) {
    pk.pack_array(4);
    run(m.run);
    pk.pack(m.settled);
    pack_program(pk, m.program);
  }
  void pack_note(const CallRefused& m) {
    pk.pack_array(4);
    pk.pack(m.call);
    pk.pack(m.fatal);
    pk.pack(m.reason);
    pk.pack(m.gone);
  }
  void pack_note(const TroubleReport& m) {
    pk.pack_array(5);
    run(m.run);
    pack_edges(pk, {m.link});
    pk.pack(m.bytes_per_s);
    pk.pack(m.what);
  }
  void pack_note(const PauseCall& m) {
    pk.pack_array(2);
    run(m.run);
  }
  void pack_note(const PausedAt& m) {
    pk.pack_array(5);
    run(m.run);
    pk.pack(m.over);
    pk.pack(m.next_call);
    pk.pack(m.known);
  }
  void pack_note(const PartDone& m) {
    pk.pack_array(2);
    run(m.run);
  }
  void pack_note(const OfferWanted& m) {
    pk.pack_array(1);
    pk.pack(m.call);
  }
  void pack_note(const LinkPing& m) { pack_edges(pk, {m.link}); }
  void pack_note(const LinkPong& m) { pack_edges(pk, {m.link}); }
  void pack_note(const AckWanted& m) {
    pk.pack_array(7);
    run(m.run);
    pk.pack(m.kind);
    pk.pack(m.tree);
    pk.pack(number(m.way));
    pk.pack(m.sent);
    pack_edges(pk, {m.link});
  }
  void pack_note(const ViewProposed& m) {
    pk.pack_array(2);
    pk.pack(m.view);
    pk.pack(m.members);
  }
  void pack_note(const ViewReady& m) {
    pk.pack_array(3);
    pk.pack(m.view);
    pk.pack(m.next_call);
    pk.pack_array(static_cast<std::uint32_t>(m.calls.size()));
    for (const auto& stands : m.calls) {
      pk.pack_array(3);
      pk.pack(stands.call);
      pk.pack(stands.done_attempt + 1);
      pk.pack(stands.has_all);
    }
  }
  void pack_note(const ViewBegun& m) {
    pk.pack_array(3);
    pk.pack(m.view);
    pk.pack(m.members);
    pk.pack(m.over);
  }
  void pack_note(const RankLost& m) {
    pk.pack_array(1);
    pk.pack(m.rank);
  }
  void pack_note(const RankPing&) { pk.pack_array(0); }
  void pack_note(const RankPong&) { pk.pack_array(0); }
  void pack_note(const CallOver& m) {
    pk.pack_array(1);
    pk.pack(m.call);
  }
  void operator()(const ProbeNote& m) {
    begin(13, 3);
    pk.pack(m.measure);
    pk.pack(static_cast<std::uint8_t>(m.note.index()));
    std::visit([&](const auto& note) { pack_note(note); }, m.note);
  }
  void pack_note(const ProbeHello&) { pk.pack_array(0); }
  void pack_note(const ProbeHere&) { pk.pack_array(0); }
  void pack_note(const MeasureOrder& m) {
    pk.pack_array(4);
    pk.pack(number(m.kind));
    pk.pack(m.to);
    pk.pack(m.from_address);
    pk.pack(m.to_address);
  }
  void pack_note(const MeasureDone& m) {
    pk.pack_array(5);
    pk.pack(m.bytes_per_s);
    pk.pack(m.least_ns);
    pk.pack(m.median_ns);
    pk.pack(m.settled);
    pk.pack(m.fault);
  }
  void pack_note(const ProbePing& m) {
    pk.pack_array(1);
    pk.pack(m.index);
  }
  void pack_note(const ProbePong& m) {
    pk.pack_array(1);
    pk.pack(m.index);
  }
  void pack_note(const ProbeBytes& m) {
    pk.pack_array(0);
    shared = m.bytes;
  }
  void pack_note(const ProbeArrived& m) {
    pk.pack_array(2);
    pk.pack(m.bytes);
    pk.pack(m.at_us);
  }
  void pack_note(const SurveyOver& m) {
    pk.pack_array(2);
    pk.pack(m.topology);
    pk.pack(m.fault);
  }
  void run(const RunId& id) {
    pk.pack(id.call);
    pk.pack(id.attempt);
  }
};

void pack_edges(Packer& pk, const std::vector<collectives::RankEdge>& edges) {
  pk.pack_array(static_cast<std::uint32_t>(edges.size()));
  for (const auto& edge : edges) {
    pk.pack_array(5);
    pk.pack(edge.from);
    pk.pack(edge.to);
    pk.pack(edge.from_address);
    pk.pack(edge.to_address);
    pk.pack(edge.switched);
  }
}

void pack_program(Packer& pk, const collectives::Program& program) {
  pk.pack_array(8);
  pk.pack(number(program.operation));
  pk.pack(number(program.element));
  pk.pack(number(program.reduction));
  pk.pack(program.ranks);
  pk.pack(program.root);
  pk.pack(program.bytes);
  pk.pack(program.members);
  pk.pack_array(static_cast<std::uint32_t>(program.trees.size()));
  for (const auto& tree : program.trees) {
    pk.pack_array(9);
    pk.pack(tree.bytes_per_s);
    pk.pack(tree.wait_us);
    pk.pack(tree.root);
    pk.pack(tree.keeper);
    pk.pack(tree.known_at_root);
    pk.pack(tree.chunk_bytes);
    pack_edges(pk, tree.up);
    pack_edges(pk, tree.down);
    pk.pack_array(static_cast<std::uint32_t>(2 * tree.share.size()));
    for (const auto& stretch : tree.share) {
      pk.pack(stretch.offset);
      pk.pack(stretch.bytes);
    }
  }
}

// ---- reading -------------------------------------------------------------------------------------------------------

struct Malformed {};  // thrown and caught in this file alone

void require(bool holds) {
  if (!holds) throw Malformed{};
}

// The fields of one message, taken in order; every fault is Malformed.
class Fields {
 public:
  explicit Fields(std::span<const msgpack::object> fields) : fields_(fields), at_(0) {}
  explicit Fields(const msgpack::object& array, std::size_t skip = 0) : at_(skip) {
    require(array.type == msgpack::type::ARRAY);
    fields_ = {array.via.array.ptr, array.via.array.size};
  }
  const msgpack::object& next() {
    require(at_ < fields_.size());
    return fields_[at_++];
  }
  template <class Unsigned>
  Unsigned uint() {
    const auto& field = next();
    require(field.type == msgpack::type::POSITIVE_INTEGER && field.via.u64 <= std::numeric_limits<Unsigned>::max());
    return static_cast<Unsigned>(field.via.u64);
  }
  std::int32_t int32() {
    const auto& field = next();
    if (field.type == msgpack::type::POSITIVE_INTEGER) {
      require(field.via.u64 <= INT32_MAX);
      return static_cast<std::int32_t>(field.via.u64);
    }
    require(field.type == msgpack::type::NEGATIVE_INTEGER && field.via.i64 >= INT32_MIN);
    return static_cast<std::int32_t>(field.via.i64);
  }
  std::int64_t int64() {  // zero and above: sizes and offsets
    const auto& field = next();
    require(field.type == msgpack::type::POSITIVE_INTEGER && field.via.u64 <= INT64_MAX);
    return static_cast<std::int64_t>(field.via.u64);
  }
  bool boolean() {
    const auto& field = next();
    require(field.type == msgpack::type::BOOLEAN);
    return field.via.boolean;
  }
  float real() { return std::bit_cast<float>(uint<std::uint32_t>()); }
  std::string text() {
    const auto& field = next();
    require(field.type == msgpack::type::STR);
    return {field.via.str.ptr, field.via.str.size};
  }
  Floats floats() {
    const auto& field = next();
    require(field.type == msgpack::type::BIN && field.via.bin.size % sizeof(float) == 0);
    Floats out(field.via.bin.size / sizeof(float));
    if (!out.empty()) std::memcpy(out.data(), field.via.bin.ptr, field.via.bin.size);
    return out;
  }
  std::span<const msgpack::object> array() {
    const auto& field = next();
    require(field.type == msgpack::type::ARRAY);
    return {field.via.array.ptr, field.via.array.size};
  }
  std::span<const msgpack::object> rest() { return fields_.subspan(std::exchange(at_, fields_.size())); }
  void end() const { require(at_ == fields_.size()); }

 private:
  std::span<const msgpack::object> fields_;
  std::size_t at_;
};

Floats bulk_floats(std::span<const std::byte> bulk) {
  require(bulk.size() % sizeof(float) == 0);
  Floats out(bulk.size() / sizeof(float));
  if (!out.empty()) std::memcpy(out.data(), bulk.data(), bulk.size());
  return out;
}

SharedFloats shared(Floats floats) { return std::make_shared<const Floats>(std::move(floats)); }

template <class Enum>
Enum one_of(Fields& f, Enum last) {
  const auto value = f.uint<std::uint8_t>();
  require(value <= static_cast<std::uint8_t>(last));
  return static_cast<Enum>(value);
}

std::vector<ArrivalRecord> arrivals(std::span<const msgpack::object> entries) {
  std::vector<ArrivalRecord> records;
  for (const auto& entry : entries) {
    Fields fields(entry);
    ArrivalRecord record;
    record.worker = fields.uint<std::uint32_t>();
    record.at_us = fields.uint<std::uint32_t>();
    record.values = fields.floats();
    fields.end();
    records.push_back(std::move(record));
  }
  return records;
}

BlockScore block_score(Fields& f) {
  BlockScore m;
  m.request = RequestId{f.uint<std::uint64_t>()};
  m.epoch = Epoch{f.uint<std::uint64_t>()};
  m.block = f.uint<std::uint32_t>();
  m.status = one_of(f, ReplyStatus::bad_request);
  m.label = f.int32();
  m.score = f.real();
  m.runner_up = f.real();
  m.log_sum_exp = f.real();
  m.head_us = f.uint<std::uint32_t>();
  m.arrivals = arrivals(f.array());
  return m;
}

InferReply infer_reply(Fields& f) {
  InferReply m;
  m.tag = f.uint<std::uint64_t>();
  m.request = f.uint<std::uint64_t>();
  m.epoch = f.uint<std::uint64_t>();
  m.status = one_of(f, ReplyStatus::bad_request);
  m.label = f.int32();
  m.margin = f.real();
  m.probability = f.real();
  m.gateway_us = f.uint<std::uint32_t>();
  m.scores = f.floats();
  m.arrivals = arrivals(f.array());
  m.error = f.text();
  return m;
}

TransferOpen transfer_open(Fields& f) {
  TransferOpen m;
  m.transfer = TransferId{f.uint<std::uint64_t>()};
  m.epoch = Epoch{f.uint<std::uint64_t>()};
  m.bytes = f.uint<std::uint64_t>();
  m.chunk_bytes = f.uint<std::uint32_t>();
  m.sha256 = f.text();
  for (const auto& entry : f.array()) {
    Fields fields(entry);
    RelayNode node;
    node.name = fields.text();
    node.parent = fields.int32();
    fields.end();
    m.tree.push_back(std::move(node));
  }
  return m;
}

RunId run_id(Fields& f) {
  RunId id;
  id.call = f.uint<std::uint64_t>();
  id.attempt = f.uint<std::uint32_t>();
  return id;
}

CollectiveAck collective_ack(Fields& f) {
  CollectiveAck m;
  m.run = run_id(f);
  m.kind = f.uint<std::uint32_t>();
  m.session = f.uint<std::uint64_t>();
  m.tree = f.uint<std::uint32_t>();
  m.way = one_of(f, Way::down);
  m.consumed = f.uint<std::uint64_t>();
  m.arrived = f.uint<std::uint64_t>();
  return m;
}

CollectiveAcks collective_acks(Fields& f) {
  CollectiveAcks m;
  const auto entries = f.array();
  if (entries.size() > kAcksMax) throw Malformed{};
  for (const auto& entry : entries) {
    Fields fields(entry);
    m.acks.push_back(collective_ack(fields));
    fields.end();
  }
  return m;
}

std::vector<collectives::RankEdge> rank_edges(std::span<const msgpack::object> entries) {
  std::vector<collectives::RankEdge> edges;
  for (const auto& entry : entries) {
    Fields fields(entry);
    collectives::RankEdge edge;
    edge.from = fields.int32();
    edge.to = fields.int32();
    edge.from_address = fields.text();
    edge.to_address = fields.text();
    edge.switched = fields.boolean();
    fields.end();
    edges.push_back(std::move(edge));
  }
  return edges;
}

std::vector<int> ranks(Fields& outer) {
  std::vector<int> out;
  const auto entries = outer.array();
  for (Fields f(entries); out.size() < entries.size();) out.push_back(f.int32());
  return out;
}

collectives::RankEdge one_edge(std::span<const msgpack::object> entries) {
  require(entries.size() == 1);
  return rank_edges(entries).front();
}

collectives::Program program(Fields& outer) {
  Fields f(outer.next());
  collectives::Program p;
  p.operation = one_of(f, collectives::Operation::scatter);
  p.element = one_of(f, collectives::Element::bytes);
  p.reduction = one_of(f, collectives::Reduction::avg);
  p.ranks = f.int32();
  p.root = f.int32();
  p.bytes = f.int64();
  p.members = ranks(f);
  for (const auto& entry : f.array()) {
    Fields fields(entry);
    collectives::TreeProgram tree;
    tree.bytes_per_s = fields.int64();
    tree.wait_us = fields.int64();
    tree.root = fields.int32();
    tree.keeper = fields.int32();
    tree.known_at_root = fields.boolean();
    tree.chunk_bytes = fields.int64();
    tree.up = rank_edges(fields.array());
    tree.down = rank_edges(fields.array());
    const auto share = fields.array();
    require(share.size() % 2 == 0);
    for (std::size_t i = 0; i < share.size(); i += 2) {
      Fields pair(share.subspan(i, 2));
      const auto offset = pair.int64();
      tree.share.push_back({offset, pair.int64()});
    }
    fields.end();
    p.trees.push_back(std::move(tree));
  }
  f.end();
  require(static_cast<bool>(collectives::check(p)));
  return p;
}

std::vector<std::uint64_t> numbers(Fields& outer) {
  std::vector<std::uint64_t> out;
  const auto entries = outer.array();
  for (Fields f(entries); out.size() < entries.size();) out.push_back(f.uint<std::uint64_t>());
  return out;
}

ViewReady view_ready(Fields& f) {
  ViewReady ready;
  ready.view = f.uint<std::uint32_t>();
  ready.next_call = f.uint<std::uint64_t>();
  for (const auto& entry : f.array()) {
    Fields fields(entry);
    CallStands stands;
    stands.call = fields.uint<std::uint64_t>();
    stands.done_attempt = fields.int64() - 1;
    stands.has_all = fields.boolean();
    fields.end();
    ready.calls.push_back(stands);
  }
  return ready;
}

void read_note(std::uint8_t kind, Fields& f, GroupNote& m) {
  switch (kind) {
    case 0: {
      ProgramOffer offer;
      offer.run = run_id(f);
      offer.settled = f.boolean();
      offer.program = program(f);
      m.note = std::move(offer);
      return;
    }
    case 1: {
      CallRefused refused;
      refused.call = f.uint<std::uint64_t>();
      refused.fatal = f.boolean();
      refused.reason = f.text();
      refused.gone = ranks(f);
      m.note = std::move(refused);
      return;
    }
    case 2: {
      TroubleReport report;
      report.run = run_id(f);
      report.link = one_edge(f.array());
      report.bytes_per_s = f.uint<std::uint64_t>();
      report.what = f.text();
      m.note = std::move(report);
      return;
    }
    case 3: m.note = PauseCall{run_id(f)}; return;
    case 4: {
      PausedAt paused;
      paused.run = run_id(f);
      paused.over = f.boolean();
      paused.next_call = f.uint<std::uint64_t>();
      paused.known = numbers(f);
      m.note = std::move(paused);
      return;
    }
    case 5: m.note = PartDone{run_id(f)}; return;
    case 6: m.note = CallOver{f.uint<std::uint64_t>()}; return;
    case 7: m.note = LinkPing{one_edge(f.rest())}; return;
    case 8: m.note = LinkPong{one_edge(f.rest())}; return;
    case 9: m.note = OfferWanted{f.uint<std::uint64_t>()}; return;
    case 10: m.note = RankPing{}; return;
    case 11: m.note = RankPong{}; return;
    case 12: {
      AckWanted wanted;
      wanted.run = run_id(f);
      wanted.kind = f.uint<std::uint32_t>();
      wanted.tree = f.uint<std::uint32_t>();
      wanted.way = one_of(f, Way::down);
      wanted.sent = f.uint<std::uint64_t>();
      wanted.link = one_edge(f.array());
      m.note = std::move(wanted);
      return;
    }
    case 13: {
      ViewProposed proposed;
      proposed.view = f.uint<std::uint32_t>();
      proposed.members = ranks(f);
      m.note = std::move(proposed);
      return;
    }
    case 14: m.note = view_ready(f); return;
    case 15: {
      ViewBegun begun;
      begun.view = f.uint<std::uint32_t>();
      begun.members = ranks(f);
      begun.over = numbers(f);
      m.note = std::move(begun);
      return;
    }
    case 16: m.note = RankLost{f.int32()}; return;
    default: throw Malformed{};
  }
}

MeasureOrder measure_order(Fields& f) {
  MeasureOrder order;
  order.kind = one_of(f, collectives::Measure::Kind::share);
  order.to = f.text();
  order.from_address = f.text();
  order.to_address = f.text();
  return order;
}

MeasureDone measure_done(Fields& f) {
  MeasureDone done;
  done.bytes_per_s = f.uint<std::uint64_t>();
  done.least_ns = f.uint<std::uint64_t>();
  done.median_ns = f.uint<std::uint64_t>();
  done.settled = f.boolean();
  done.fault = f.text();
  return done;
}

void read_probe(std::uint8_t kind, Fields& f, const SharedBytes& bulk, ProbeNote& m) {
  require(kind == 6 || bulk.size == 0);
  switch (kind) {
    case 0: m.note = ProbeHello{}; return;
    case 1: m.note = ProbeHere{}; return;
    case 2: m.note = measure_order(f); return;
    case 3: m.note = measure_done(f); return;
    case 4: m.note = ProbePing{f.uint<std::uint32_t>()}; return;
    case 5: m.note = ProbePong{f.uint<std::uint32_t>()}; return;
    case 6: m.note = ProbeBytes{bulk.owner ? bulk : SharedBytes::copy_of(bulk.view())}; return;
    case 7: {
      ProbeArrived arrived;
      arrived.bytes = f.uint<std::uint64_t>();
      arrived.at_us = f.uint<std::uint64_t>();
      m.note = arrived;
      return;
    }
    case 8: {
      SurveyOver over;
      over.topology = f.text();
      over.fault = f.text();
      m.note = std::move(over);
      return;
    }
    default: throw Malformed{};
  }
}

DataMessage read(std::uint32_t type, Fields& f, const SharedBytes& shared_bulk) {
  const auto bulk = shared_bulk.view();
  const auto no_bulk = [&] { require(bulk.empty()); };
  switch (type) {
    case 0: {
      InferRequest m;
      m.tag = f.uint<std::uint64_t>();
      m.record = f.boolean();
      m.item = shared(bulk_floats(bulk));
      return m;
    }
    case 1: {
      WorkItem m;
      m.request = RequestId{f.uint<std::uint64_t>()};
      m.epoch = Epoch{f.uint<std::uint64_t>()};
      m.worker = f.uint<std::uint32_t>();
      m.item = shared(bulk_floats(bulk));
      return m;
    }
    case 2: {
      CodedResponse m;
      m.request = RequestId{f.uint<std::uint64_t>()};
      m.epoch = Epoch{f.uint<std::uint64_t>()};
      m.worker = f.uint<std::uint32_t>();
      m.service_us = f.uint<std::uint32_t>();
      m.values = bulk_floats(bulk);
      return m;
    }
    case 3: no_bulk(); return infer_reply(f);
    case 4: no_bulk(); return transfer_open(f);
    case 5: {
      WeightChunk m;
      m.transfer = TransferId{f.uint<std::uint64_t>()};
      m.index = f.uint<std::uint32_t>();
      m.bytes = std::make_shared<const std::vector<std::byte>>(bulk.begin(), bulk.end());
      return m;
    }
    case 6: {
      no_bulk();
      ChunkAck m;
      m.transfer = TransferId{f.uint<std::uint64_t>()};
      m.received = f.uint<std::uint32_t>();
      return m;
    }
    case 7: no_bulk(); return StatusRequest{f.uint<std::uint64_t>()};
    case 8: {
      no_bulk();
      FaultRequest m;
      m.tag = f.uint<std::uint64_t>();
      m.spec = f.text();
      return m;
    }
    case 9: {
      no_bulk();
      TextReply m;
      m.tag = f.uint<std::uint64_t>();
      m.text = f.text();
      m.error = f.text();
      return m;
    }
    case 10: {
      CollectiveChunk m;
      m.run = run_id(f);
      m.kind = f.uint<std::uint32_t>();
      m.session = f.uint<std::uint64_t>();
      m.tree = f.uint<std::uint32_t>();
      m.way = one_of(f, Way::down);
      m.index = f.uint<std::uint64_t>();
      m.bytes = shared_bulk.owner ? shared_bulk : SharedBytes::copy_of(bulk);
      return m;
    }
    case 11: {
      no_bulk();
      return collective_ack(f);
    }
    case 12: {
      no_bulk();
      GroupNote m;
      m.origin = f.uint<std::uint32_t>();
      m.session = f.uint<std::uint64_t>();
      m.number = f.uint<std::uint64_t>();
      m.target = f.int32();
      m.flood = f.boolean();
      const auto kind = f.uint<std::uint8_t>();
      Fields fields(f.next());
      read_note(kind, fields, m);
      fields.end();
      return m;
    }
    case 13: {
      ProbeNote m;
      m.measure = f.uint<std::uint64_t>();
      const auto kind = f.uint<std::uint8_t>();
      Fields fields(f.next());
      read_probe(kind, fields, shared_bulk, m);
      fields.end();
      return m;
    }
    case 14: {
      BlockItem m;
      m.request = RequestId{f.uint<std::uint64_t>()};
      m.epoch = Epoch{f.uint<std::uint64_t>()};
      m.block = f.uint<std::uint32_t>();
      m.asked = f.uint<std::uint64_t>();
      m.patience_us = f.uint<std::uint32_t>();
      m.record = f.boolean();
      m.item = shared(bulk_floats(bulk));
      return m;
    }
    case 15: no_bulk(); return block_score(f);
    case 16: no_bulk(); return WorkerGone{f.uint<std::uint32_t>()};
    case 17: no_bulk(); return collective_acks(f);
    default: throw Malformed{};
  }
}

}  // namespace

Frame encode(const DataMessage& message) {
  msgpack::sbuffer buffer(256);
  Packer packer(buffer);
  Frame frame;
  std::visit(Writer{packer, frame.bulk, frame.shared}, message);
  const auto* data = reinterpret_cast<const std::byte*>(buffer.data());
  frame.head.assign(data, data + buffer.size());
  return frame;
}

Expected<DataMessage> decode(std::span<const std::byte> head, std::span<const std::byte> bulk) {
  // Never written to: without an owner whoever keeps the bytes copies them.
  return decode(head, SharedBytes{nullptr, const_cast<std::byte*>(bulk.data()), bulk.size()});
}

Expected<DataMessage> decode(std::span<const std::byte> head, const SharedBytes& bulk) {
  if (head.size() > kHeadBytesMax || bulk.size > kBulkBytesMax) return bad_input("frame: larger than is taken");
  const auto handle = unpack(head);
  if (!handle) return tl::unexpected(handle.error());
  try {
    Fields fields(handle->get());
    if (fields.uint<std::uint32_t>() != kVersion) return bad_input("frame: of another version of coppice");
    const auto type = fields.uint<std::uint32_t>();
    auto message = read(type, fields, bulk);
    fields.end();
    return message;
  } catch (const Malformed&) {
    return bad_input("frame: malformed");
  }
}

// ---- one part ----------------------------------------------------------------------------------------------------------

namespace {

constexpr std::byte kJoined{0xc1};
constexpr std::size_t kPrefixBytes = 8;

// Where the bulk begins: floats in it are aligned where the part is.
std::size_t bulk_at(std::size_t head_bytes) { return (kPrefixBytes + head_bytes + 7) / 8 * 8; }

}  // namespace

std::optional<std::size_t> joined_bytes(const Frame& frame) {
  const auto bulk = frame.bulk_bytes();
  if (bulk == 0 || bulk > kJoinedBulkMax || frame.head.size() > kJoinedBulkMax) return std::nullopt;
  return bulk_at(frame.head.size()) + bulk;
}

void join(const Frame& frame, std::span<std::byte> into) {
  const auto head = static_cast<std::uint32_t>(frame.head.size());
  const auto bulk = frame.shared ? std::span<const std::byte>(frame.shared.view()) : std::span<const std::byte>(frame.bulk);
  std::ranges::fill(into.first(bulk_at(head)), std::byte{0});
  into[0] = kJoined;
  for (std::size_t i = 0; i < sizeof head; ++i) into[4 + i] = static_cast<std::byte>(head >> 8 * i & 0xff);
  std::ranges::copy(frame.head, into.begin() + kPrefixBytes);
  std::ranges::copy(bulk, into.begin() + static_cast<std::ptrdiff_t>(bulk_at(head)));
}

bool is_joined(std::span<const std::byte> part) { return !part.empty() && part[0] == kJoined; }

Expected<Split> split(std::span<const std::byte> part) {
  if (part.size() < kPrefixBytes) return bad_input("frame: malformed");
  std::size_t head = 0;
  for (std::size_t i = 0; i < sizeof(std::uint32_t); ++i) head |= std::to_integer<std::size_t>(part[4 + i]) << 8 * i;
  if (bulk_at(head) > part.size()) return bad_input("frame: malformed");
  return Split{part.subspan(kPrefixBytes, head), bulk_at(head)};
}

}  // namespace coppice::runtime
