#include "reference/primitives/arithmetic_coder.hpp"

#include <algorithm>

#include "core/errors.hpp"

namespace kvatlas::coder {
namespace {

constexpr std::uint32_t kTop = 0x80000000U, kQuarter = 0x40000000U, kThreeQuarters = 0xC0000000U;

/// Bits, most significant first.
class BitWriter {
 public:
  explicit BitWriter(std::vector<std::byte>& out) : out_(out) {}
  void put(unsigned bit) {
    cache_ = (cache_ << 1) | bit;
    if (++held_ < 8) return;
    out_.push_back(static_cast<std::byte>(cache_ & 0xFFU));
    held_ = 0;
  }
  /// `bit`, then every pending bit as its complement.
  void put_with_pending(unsigned bit, std::uint64_t& pending) {
    put(bit);
    for (; pending > 0; --pending) put(1U - bit);
  }
  void finish() {
    while (held_ != 0) put(0);
  }

 private:
  std::vector<std::byte>& out_;
  unsigned cache_ = 0;
  int held_ = 0;
};

class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> in) : in_(in) {}
  std::uint32_t get() {
    const std::size_t byte = at_ / 8;
    const unsigned bit = byte < in_.size() ? (static_cast<unsigned>(in_[byte]) >> (7 - at_ % 8)) & 1U : 0U;
    ++at_;
    return bit;
  }

 private:
  std::span<const std::byte> in_;
  std::size_t at_ = 0;
};

struct Interval {
  std::uint32_t low = 0, high = 0xFFFFFFFFU;

  std::uint64_t span() const { return std::uint64_t{high} - low + 1; }
  void narrow(std::size_t symbol, std::span<const std::uint16_t> table) {
    const std::uint64_t width = span();
    const std::uint64_t from = table[symbol];
    const std::uint64_t to = symbol + 2 == table.size() ? 65536U : table[symbol + 1];
    high = static_cast<std::uint32_t>(low - 1 + ((width * to) >> 16));
    low = static_cast<std::uint32_t>(low + ((width * from) >> 16));
  }
  bool settled() const { return high < kTop || low >= kTop; }        // the leading bit is known
  bool straddles() const { return low >= kQuarter && high < kThreeQuarters; }
  void shift() {
    low <<= 1;
    high = (high << 1) | 1U;
  }
  void shift_straddling() {
    low = (low << 1) & 0x7FFFFFFFU;
    high = (high << 1) | 0x80000001U;
  }
};

}  // namespace

void fill_table(std::span<const std::uint8_t> symbols, std::span<std::uint16_t> table) {
  const std::size_t alphabet = table.size() - 1;
  KV_ASSERT(alphabet >= 1 && alphabet <= 256, "an alphabet has 1 to 256 symbols");
  std::vector<std::uint64_t> counts(alphabet, symbols.empty() ? 1 : 0);
  for (const std::uint8_t s : symbols) {
    KV_ASSERT(s < alphabet, "a symbol lies in its alphabet");
    ++counts[s];
  }
  const std::uint64_t all = symbols.empty() ? alphabet : symbols.size();
  std::uint64_t below = 0;
  for (std::size_t i = 0; i <= alphabet; ++i) {
    table[i] = static_cast<std::uint16_t>((65535 - alphabet) * below / all + i);
    if (i < alphabet) below += counts[i];
  }
}

bool is_table(std::span<const std::uint16_t> table) {
  return table.size() >= 2 && table.front() == 0 && table.back() == 65535 &&
         std::adjacent_find(table.begin(), table.end(), [](auto a, auto b) { return a >= b; }) == table.end();
}

std::size_t encode(std::span<const std::uint8_t> symbols, std::span<const std::uint16_t> table, std::vector<std::byte>& out) {
  const std::size_t start = out.size();
  BitWriter bits(out);
  Interval interval;
  std::uint64_t pending = 0;
  for (const std::uint8_t s : symbols) {
    interval.narrow(s, table);
    for (;;) {
      if (interval.settled()) {
        bits.put_with_pending(interval.low >= kTop ? 1 : 0, pending);
        interval.shift();
      } else if (interval.straddles()) {
        ++pending;
        interval.shift_straddling();
      } else {
        break;
      }
    }
  }
  ++pending;
  bits.put_with_pending(interval.low < kQuarter ? 0 : 1, pending);
  bits.finish();
  return out.size() - start;
}

void decode(std::span<const std::byte> coded, std::span<const std::uint16_t> table, std::span<std::uint8_t> symbols) {
  BitReader bits(coded);
  Interval interval;
  std::uint32_t value = 0;
  for (int i = 0; i < 32; ++i) value = (value << 1) | bits.get();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    const std::uint64_t count = ((std::uint64_t{value} - interval.low + 1) * 65536 - 1) / interval.span();
    // The largest symbol whose interval starts at or below `count`; the last entry is an end, not a start.
    const auto above = std::upper_bound(table.begin() + 1, table.end() - 1, count);
    const auto symbol = static_cast<std::size_t>(above - table.begin()) - 1;
    symbols[i] = static_cast<std::uint8_t>(symbol);
    if (i + 1 == symbols.size()) break;
    interval.narrow(symbol, table);
    for (;;) {
      if (interval.settled()) {
        interval.shift();
        value = (value << 1) | bits.get();
      } else if (interval.straddles()) {
        interval.shift_straddling();
        value = ((value - kQuarter) << 1) | bits.get();
      } else {
        break;
      }
    }
  }
}

}  // namespace kvatlas::coder
