#include "core/ledger.hpp"

namespace kvatlas {

const char* name_of(Scope scope) {
  switch (scope) {
    case Scope::token: return "token";
    case Scope::group: return "group";
    case Scope::page: return "page";
    case Scope::head: return "head";
    case Scope::layer: return "layer";
    case Scope::sequence: return "sequence";
    case Scope::global: return "global";
  }
  return "?";
}

const char* name_of(Side side) { return side == Side::key ? "key" : side == Side::value ? "value" : "both"; }

void ContentCounts::add(std::string_view name, std::int64_t value, int part) {
  for (Count& c : counts)
    if (c.name == name && c.part == part) {
      c.value += value;
      return;
    }
  counts.push_back({name, value, part});
}

std::int64_t ContentCounts::get(std::string_view name, std::int64_t expected) const {
  std::int64_t sum = 0;
  bool found = false;
  for (const Count& c : counts)
    if (c.name == name) {
      sum += c.value;
      found = true;
    }
  return found ? sum : expected;
}

ContentCounts ContentCounts::of_part(int part) const {
  ContentCounts out;
  for (const Count& c : counts)
    if (c.part == part) out.add(c.name, c.value);
  return out;
}

void Ledger::add(std::string_view component, Side side, Scope scope, Bytes bytes) {
  for (LedgerEntry& e : entries_)
    if (e.component == component && e.side == side) {
      e.bytes += bytes;
      return;
    }
  entries_.push_back({component, side, scope, bytes});
}

void Ledger::add(const Ledger& other) {
  const Bytes joint_prefill = prefill() + other.prefill(), joint_high_water = high_water() + other.high_water();
  for (const LedgerEntry& e : other.entries_) add(e.component, e.side, e.scope, e.bytes);
  prefill_ = joint_prefill;
  high_water_ = joint_high_water;
}

Bytes Ledger::total() const {
  Bytes sum{0};
  for (const LedgerEntry& e : entries_) sum += e.bytes;
  return sum;
}

Bytes Ledger::total(Side side) const {
  Bytes sum{0};
  for (const LedgerEntry& e : entries_)
    if (e.side == side) sum += e.bytes;
  return sum;
}

Bytes Ledger::of(std::string_view component, Side side) const {
  for (const LedgerEntry& e : entries_)
    if (e.component == component && e.side == side) return e.bytes;
  return Bytes{0};
}

}  // namespace kvatlas
