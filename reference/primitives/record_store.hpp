// One side of a layer kept as records: `block` rows of one kv head become one run of bytes that depends on nothing else but
// the layer's fixed state (scales, codebooks). A method states the parts of a record and two functions; storing, saving,
// ageing, ledger and plans follow from that.
#pragma once

#include <boost/container/small_vector.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "reference/method.hpp"
#include "reference/primitives/numbers.hpp"
#include "reference/primitives/sides.hpp"

namespace kvatlas {

/// A stretch of a record, or of a layer's state, that is a component of the ledger.
struct RecordPart {
  std::string_view component;  // a literal; names are unique within a record and its state
  std::int64_t bytes = 0;
  Scope scope = Scope::token;
};

/// When rows become records.
enum class Ageing : std::uint8_t {
  at_once,  // as they come, before their own step attends; records of one row
  flush,    // once `residual` rows wait, all of them, the prompt's remainder waiting on
  slide,    // all but the newest `residual` rows, in whole records
};

/// What a method keeps of one side of a class. Ageing rules hold once the prompt is done; before, rows that wait are plain.
struct RecordLayout {
  int block = 1;
  boost::container::small_vector<RecordPart, 5> parts{};
  boost::container::small_vector<RecordPart, 1> state{};  // of a layer, whatever the number of tokens
  bool own_state = false;  // each sequence takes its own state from its first call; else all sequences share the layer's
  CodeFormat format{};     // nearest format that kernels know
  Ageing ageing = Ageing::at_once;
  Tokens residual{0};      // a multiple of `block`; `slide` may have any
  Tokens sinks{0};         // first rows, never coded
  bool joined = false;     // a row is all kv heads of a token side by side

  std::int64_t record_bytes() const;
  std::int64_t state_bytes() const;
  /// Rows in records when there are `rows` rows, the prompt being done.
  Tokens coded(Tokens rows) const;
  SideLayout side(Tokens rows) const;
};

/// Where a record lies.
struct RecordPlace {
  int kv_head = 0;
  std::span<const std::byte> state{};
};

/// rows [block, dim]; a record has its parts one after the other, in the layout's order.
struct RecordCodec {
  std::function<void(const RecordPlace&, View<const float> rows, std::span<std::byte> record)> encode;
  std::function<void(const RecordPlace&, std::span<const std::byte> record, View<float> rows)> decode;
  /// The layer's state from its first call, [kv_heads, n, dim], where the layout has an own_state; else state is `initial_state`.
  std::function<void(View<const float> first, std::span<std::byte> state)> start{};
  std::vector<std::byte> initial_state{};
  /// A sentence when saved state cannot be.
  std::function<std::optional<std::string>(std::span<const std::byte> state)> state_fault{};
};

/// Decoded rows are rounded to `dtype`, as a 16-bit attention kernel takes its operands.
class RecordStore final : public SideStore {
 public:
  RecordStore(int kv_heads, int dim, Side side, Dtype dtype, RecordLayout layout, RecordCodec codec);

  void append(View<const float> rows) override;
  void settle(bool prompt_done) override;
  Tokens size() const override;
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void drop_front(Tokens count) override;
  void check_crop(Tokens length) const override;
  void crop(Tokens length) override;
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;

 private:
  std::int64_t records() const { return static_cast<std::int64_t>(heads_.front().size()) / record_bytes_; }
  std::int64_t coded() const { return records() * layout_.block; }
  void encode(View<const float> rows);

  int dim_;
  Side side_;
  Dtype dtype_;
  RecordLayout layout_;
  RecordCodec codec_;
  std::int64_t record_bytes_;
  std::vector<std::byte> state_;
  bool started_;
  std::vector<std::vector<std::byte>> heads_;  // records of one kv head
  std::unique_ptr<SideStore> sinks_, waiting_;  // null where the layout has none
};

/// The layout of one side of a class of layers.
using RecordLayoutOf = std::function<RecordLayout(const LayerClass&, Side)>;

/// Ledger and plans of a method both sides of which are records.
Ledger record_ledger(const CacheShape& shape, const History& h, const RecordLayoutOf& layout);
Plan record_decode_plan(const CacheShape& shape, const History& h, const RecordLayoutOf& layout);
Plan record_prefill_plan(const CacheShape& shape, const History& h, const RecordLayoutOf& layout);

/// A SideCache. Kept out of line so that a method needs this header alone.
std::unique_ptr<KvCache> side_cache(const CacheShape& shape, std::function<std::unique_ptr<SideStore>(const LayerClass&, int, Side)> make);

/// The faces that follow from a method's layout(p, c, side), and from its open_side.
template <class P, RecordLayout (*Layout)(const P&, const LayerClass&, Side)>
struct RecordFaces {
  static RecordLayoutOf of(const P& p) {
    return [&p](const LayerClass& c, Side side) { return Layout(p, c, side); };
  }
  static SideLayout side_layout(const P& p, const LayerClass& c, Side side, Dtype, Tokens context) { return Layout(p, c, side).side(context); }
  static Ledger ledger_formula(const P& p, const CacheShape& shape, const History& h, const ContentCounts&) {
    return record_ledger(shape, h, of(p));
  }
  static Plan decode_plan(const P& p, const CacheShape& shape, const History& h, const ContentCounts&) {
    return record_decode_plan(shape, h, of(p));
  }
  static Plan prefill_plan(const P& p, const CacheShape& shape, const History& h, const ContentCounts&) {
    return record_prefill_plan(shape, h, of(p));
  }
};
template <class P, std::unique_ptr<SideStore> (*OpenSide)(const P&, const LayerClass&, int, Side, Dtype)>
std::unique_ptr<KvCache> open_sides(const P& p, const CacheShape& shape, const OpenInputs&) {
  return side_cache(shape, [p, dtype = shape.dtype](const LayerClass& c, int layer, Side side) { return OpenSide(p, c, layer, side, dtype); });
}

/// A step's rotations of `heads` vectors by one [block, block] matrix, as a small matrix product.
void add_rotation(Plan& plan, const LayerClass& c, Dtype dtype, const History& h, std::int64_t heads, int width, int block);

}  // namespace kvatlas
