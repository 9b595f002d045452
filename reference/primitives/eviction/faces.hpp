// The faces of a record from one function of a method's page: Faces<rule>, where
//   Rule rule(const Params&, const CacheShape&)                      or, where a file of trained parts is needed,
//   Rule rule(const Params&, const CacheShape&, const OpenInputs&)   (formulas call it with empty inputs)
#pragma once

#include <memory>

#include "reference/faces.hpp"
#include "reference/params.hpp"
#include "reference/primitives/eviction/rule.hpp"

namespace kvatlas::eviction {

std::unique_ptr<KvCache> open(Rule rule, const CacheShape& shape);

namespace detail {

template <auto F>
struct Call;
template <class P, Rule (*F)(const P&, const CacheShape&)>
struct Call<F> {
  static Rule of(const ParamRow& row, const CacheShape& shape, const OpenInputs&) { return F(params_of<P>(row), shape); }
};
template <class P, Rule (*F)(const P&, const CacheShape&, const OpenInputs&)>
struct Call<F> {
  static Rule of(const ParamRow& row, const CacheShape& shape, const OpenInputs& in) { return F(params_of<P>(row), shape, in); }
};

}  // namespace detail

template <auto F>
struct Faces {
  static Rule rule(const ParamRow& row, const CacheShape& shape) { return detail::Call<F>::of(row, shape, {}); }
  static std::optional<std::string> why_not(const ParamRow& row, const CacheShape& shape) {
    return eviction::why_not(rule(row, shape), shape);
  }
  static Ledger ledger_formula(const ParamRow& row, const CacheShape& shape, const History& h, const ContentCounts& counts) {
    return eviction::ledger_formula(rule(row, shape), shape, h, counts);
  }
  static Plan decode_plan(const ParamRow& row, const CacheShape& shape, const History& h, const ContentCounts& counts) {
    return eviction::decode_plan(rule(row, shape), shape, h, counts);
  }
  static Plan prefill_plan(const ParamRow& row, const CacheShape& shape, const History& h, const ContentCounts&) {
    return eviction::prefill_plan(rule(row, shape), shape, h);
  }
  static std::unique_ptr<KvCache> open(const ParamRow& row, const CacheShape& shape, const OpenInputs& in) {
    return eviction::open(detail::Call<F>::of(row, shape, in), shape);
  }
};

}  // namespace kvatlas::eviction
