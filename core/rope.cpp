#include "core/rope.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/arith64.hpp"
#include "core/errors.hpp"

namespace kvatlas {

namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

std::size_t pairs_of(const RopeSpec& spec) { return static_cast<std::size_t>(spec.rotary_dim / 2); }

/// base^(-2i / d).
std::vector<double> unscaled_frequencies(double base, int rotary_dim) {
  std::vector<double> theta(static_cast<std::size_t>(rotary_dim / 2));
  for (std::size_t i = 0; i < theta.size(); ++i)
    theta[i] = num::pow(base, -2.0 * static_cast<double>(i) / rotary_dim);
  return theta;
}

void scale_by_llama3(const RopeSpec& spec, std::vector<double>& theta) {
  for (double& t : theta) {
    const double rotations = spec.original_context * t / kTwoPi;  // turns of this pair over the original context
    if (rotations > spec.high_freq_factor) continue;
    if (rotations < spec.low_freq_factor) {
      t /= spec.factor;
      continue;
    }
    const double keep = (rotations - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor);
    t = (1.0 - keep) * t / spec.factor + keep * t;
  }
}

void scale_by_yarn(const RopeSpec& spec, std::vector<double>& theta) {
  const YarnRamp ramp = yarn_ramp(spec);
  for (std::size_t i = 0; i < theta.size(); ++i) {
    const double blend = std::clamp((static_cast<double>(i) - ramp.low) / (ramp.high - ramp.low), 0.0, 1.0);
    theta[i] = theta[i] * (1.0 - blend) + theta[i] / spec.factor * blend;
  }
}

void require(const std::optional<std::string>& sentence) {
  if (sentence) throw InvalidArgument(*sentence);
}

void require_row(const RopeSpec& spec, std::size_t width) {
  if (width < static_cast<std::size_t>(spec.first_channel + spec.rotary_dim))
    throw InvalidArgument(cat("row has ", width, " channels, must have at least first_channel + rotary_dim (",
                              spec.first_channel + spec.rotary_dim, ")"));
}

}  // namespace

std::optional<std::string> why_not(const RopeSpec& spec, int row_dim) {
  const auto positive = [](double v) { return std::isfinite(v) && v > 0.0; };
  if (spec.rotary_dim < 0 || spec.rotary_dim % 2 != 0)
    return cat("rotary_dim is ", spec.rotary_dim, ", must be even and not negative");
  if (spec.first_channel < 0) return cat("first_channel is ", spec.first_channel, ", must not be negative");
  if (row_dim >= 0 && spec.first_channel + spec.rotary_dim > row_dim)
    return cat("first_channel + rotary_dim is ", spec.first_channel + spec.rotary_dim, ", must be at most the row width (",
               row_dim, ")");
  if (spec.rotary_dim == 0) return std::nullopt;
  if (!(std::isfinite(spec.base) && spec.base > 1.0)) return cat("base is ", spec.base, ", must be above 1");
  if (!(std::isfinite(spec.attention_factor) && spec.attention_factor >= 0.0))
    return cat("attention_factor is ", spec.attention_factor, ", must be 0 (the scheme's own) or positive");
  if (spec.scaling == RopeScaling::none) return std::nullopt;
  if (!positive(spec.factor)) return cat("factor is ", spec.factor, ", must be positive");
  if (spec.scaling == RopeScaling::ntk && spec.rotary_dim < 4)
    return cat("rotary_dim is ", spec.rotary_dim, ", must be at least 4 for ntk scaling");
  if (spec.scaling == RopeScaling::yarn || spec.scaling == RopeScaling::llama3)
    if (!positive(spec.original_context))
      return cat("original_context is ", spec.original_context, ", must be positive for yarn and llama3 scaling");
  if (spec.scaling == RopeScaling::yarn && !(positive(spec.beta_slow) && positive(spec.beta_fast) &&
                                             spec.beta_slow < spec.beta_fast))
    return cat("beta_slow and beta_fast are ", spec.beta_slow, " and ", spec.beta_fast,
               ", must be positive and ascending");
  if (spec.scaling == RopeScaling::llama3 && !(positive(spec.low_freq_factor) && positive(spec.high_freq_factor) &&
                                               spec.low_freq_factor < spec.high_freq_factor))
    return cat("low_freq_factor and high_freq_factor are ", spec.low_freq_factor, " and ", spec.high_freq_factor,
               ", must be positive and ascending");
  return std::nullopt;
}

YarnRamp yarn_ramp(const RopeSpec& spec) {
  require(why_not(spec));
  const auto pair_that_turns = [&](double rotations) {  // the pair that makes so many turns over the original context
    return spec.rotary_dim * num::log(spec.original_context / (kTwoPi * rotations)) / (2.0 * num::log(spec.base));
  };
  YarnRamp ramp{pair_that_turns(spec.beta_fast), pair_that_turns(spec.beta_slow)};
  if (spec.yarn_truncate) ramp = {std::floor(ramp.low), std::ceil(ramp.high)};
  ramp.low = std::max(ramp.low, 0.0);
  ramp.high = std::min(ramp.high, static_cast<double>(spec.rotary_dim - 1));
  if (ramp.low == ramp.high) ramp.high += 0.001;  // as in the Hugging Face code: a step instead of a division by zero
  return ramp;
}

double ntk_base(double base, int rotary_dim, double factor) {
  if (rotary_dim < 4) throw InvalidArgument(cat("rotary_dim is ", rotary_dim, ", must be at least 4 for ntk scaling"));
  return base * num::pow(factor, static_cast<double>(rotary_dim) / (rotary_dim - 2));
}

std::vector<double> rope_frequencies(const RopeSpec& spec) {
  require(why_not(spec));
  if (spec.rotary_dim == 0) return {};
  const double base =
      spec.scaling == RopeScaling::ntk ? ntk_base(spec.base, spec.rotary_dim, spec.factor) : spec.base;
  std::vector<double> theta = unscaled_frequencies(base, spec.rotary_dim);
  switch (spec.scaling) {
    case RopeScaling::none:
    case RopeScaling::ntk: break;
    case RopeScaling::linear:
      for (double& t : theta) t /= spec.factor;
      break;
    case RopeScaling::yarn: scale_by_yarn(spec, theta); break;
    case RopeScaling::llama3: scale_by_llama3(spec, theta); break;
  }
  return theta;
}

double rope_attention_factor(const RopeSpec& spec) {
  if (spec.attention_factor > 0.0) return spec.attention_factor;
  if (spec.scaling == RopeScaling::yarn && spec.factor > 1.0) return 0.1 * num::log(spec.factor) + 1.0;
  return 1.0;
}

RopeSpec dynamic_ntk(const RopeSpec& spec, Tokens context) {
  RopeSpec at_context = spec;
  at_context.scaling = RopeScaling::none;
  require(why_not(at_context));
  if (!(spec.original_context > 0.0) || !(spec.factor >= 1.0))
    throw InvalidArgument(cat("original_context and factor are ", spec.original_context, " and ", spec.factor,
                              ", must be positive and at least 1 for dynamic ntk"));
  const double n = static_cast<double>(context.value);
  if (n <= spec.original_context) return at_context;
  const double stretch = spec.factor * n / spec.original_context - (spec.factor - 1.0);
  at_context.base = ntk_base(spec.base, spec.rotary_dim, stretch);
  return at_context;
}

RopeTable::RopeTable(const RopeSpec& spec, Tokens cached) : RopeTable(spec, rope_frequencies(spec), cached) {}

RopeTable::RopeTable(const RopeSpec& spec, std::vector<double> frequencies, Tokens cached)
    : spec_(spec), frequencies_(std::move(frequencies)) {
  require(why_not(spec_));
  const std::size_t pairs = pairs_of(spec_);
  if (frequencies_.size() != pairs)
    throw InvalidArgument(cat("frequencies has ", frequencies_.size(), " entries, must have rotary_dim / 2 (", pairs, ")"));
  for (const double theta : frequencies_)
    if (!(theta >= 0.0 && theta <= 1.0)) throw InvalidArgument(cat("frequency is ", theta, ", must be between 0 and 1"));
  attention_factor_ = rope_attention_factor(spec_);
  if (cached.value < 0 || cached.value > kMaxPosition)
    throw InvalidArgument(cat("cached positions is ", cached.value, ", must be between 0 and ", kMaxPosition));
  cos_.resize(static_cast<std::size_t>(cached.value) * pairs);
  sin_.resize(cos_.size());
  for (std::int64_t p = 0; p < cached.value; ++p) {
    const std::size_t at = static_cast<std::size_t>(p) * pairs;
    fill(p, attention_factor_, std::span(cos_).subspan(at, pairs), std::span(sin_).subspan(at, pairs));
  }
  cached_ = cached.value;
}

void RopeTable::fill(std::int64_t position, double gain, std::span<float> cos, std::span<float> sin) const {
  if (position < -kMaxPosition || position > kMaxPosition)
    throw InvalidArgument(cat("position is ", position, ", must be between ", -kMaxPosition, " and ", kMaxPosition));
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = static_cast<double>(position) * frequencies_[i];
    cos[i] = static_cast<float>(num::cos(angle) * gain);
    sin[i] = static_cast<float>(num::sin(angle) * gain);
  }
}

Rotation RopeTable::make(std::int64_t position, double gain, bool negate) const {
  Rotation r{std::vector<float>(frequencies_.size()), std::vector<float>(frequencies_.size())};
  fill(position, gain, r.cos, r.sin);
  if (negate)
    for (float& s : r.sin) s = -s;
  return r;
}

Rotation RopeTable::rotation(std::int64_t position) const {
  if (position < 0 || position >= cached_) return make(position, attention_factor_, false);
  const auto pairs = static_cast<std::ptrdiff_t>(frequencies_.size());
  const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(position) * pairs;
  return {{cos_.begin() + at, cos_.begin() + at + pairs}, {sin_.begin() + at, sin_.begin() + at + pairs}};
}

Rotation RopeTable::inverse_rotation(std::int64_t position) const { return make(position, 1.0 / attention_factor_, true); }

Rotation RopeTable::delta_rotation(std::int64_t delta) const { return make(delta, 1.0, false); }

void RopeTable::rotate(std::span<float> row, std::span<const float> cos, std::span<const float> sin) const {
  require_row(spec_, row.size());
  const std::size_t pairs = frequencies_.size();
  const std::size_t step = spec_.layout == RopeLayout::interleaved ? 2 : 1;
  float* first = row.data() + spec_.first_channel;
  float* second = first + (spec_.layout == RopeLayout::interleaved ? 1 : pairs);
  for (std::size_t i = 0; i < pairs; ++i) {
    const float x = first[i * step];
    const float y = second[i * step];
    first[i * step] = x * cos[i] - y * sin[i];
    second[i * step] = y * cos[i] + x * sin[i];
  }
}

void RopeTable::rotate(std::span<float> row, const Rotation& by) const {
  if (by.cos.size() != frequencies_.size() || by.sin.size() != frequencies_.size())
    throw InvalidArgument(cat("rotation has ", by.cos.size(), " pairs, must have ", frequencies_.size()));
  rotate(row, std::span(by.cos), std::span(by.sin));
}

void RopeTable::apply(std::span<float> row, std::int64_t position) const {
  if (position < 0 || position >= cached_) return rotate(row, rotation(position));
  const std::size_t pairs = frequencies_.size();
  const std::size_t at = static_cast<std::size_t>(position) * pairs;
  rotate(row, std::span(cos_).subspan(at, pairs), std::span(sin_).subspan(at, pairs));
}

void RopeTable::apply_inverse(std::span<float> row, std::int64_t position) const {
  rotate(row, inverse_rotation(position));
}

void RopeTable::rerotate(std::span<float> row, std::int64_t from, std::int64_t to) const {
  rotate(row, delta_rotation(to - from));
}

namespace {

/// Calls turn(row, rotation) for every row; each position's rotation is made once for all heads.
template <class Make, class Turn>
void for_each_row(View<float> rows, std::span<const std::int64_t> positions, Make make, Turn turn) {
  if (rows.rank() != 3 || rows.dim(1) != static_cast<std::int64_t>(positions.size()))
    throw InvalidArgument(cat("positions has ", positions.size(), " entries, rows must be [heads, ", positions.size(),
                              ", dim]"));
  for (std::int64_t i = 0; i < rows.dim(1); ++i) {
    const Rotation by = make(positions[static_cast<std::size_t>(i)]);
    for (std::int64_t h = 0; h < rows.dim(0); ++h) turn(rows.row(h, i), by);
  }
}

}  // namespace

void RopeTable::apply(View<float> rows, std::span<const std::int64_t> positions) const {
  for_each_row(rows, positions, [&](std::int64_t p) { return rotation(p); },
               [&](std::span<float> row, const Rotation& by) { rotate(row, by); });
}

void RopeTable::apply_inverse(View<float> rows, std::span<const std::int64_t> positions) const {
  for_each_row(rows, positions, [&](std::int64_t p) { return inverse_rotation(p); },
               [&](std::span<float> row, const Rotation& by) { rotate(row, by); });
}

void interleaved_to_half_split(std::span<float> row, const RopeSpec& spec) {
  require_row(spec, row.size());
  const std::span<float> part = row.subspan(static_cast<std::size_t>(spec.first_channel));
  const std::vector<float> old(part.begin(), part.begin() + spec.rotary_dim);
  const std::size_t pairs = pairs_of(spec);
  for (std::size_t i = 0; i < pairs; ++i) {
    part[i] = old[2 * i];
    part[i + pairs] = old[2 * i + 1];
  }
}

void half_split_to_interleaved(std::span<float> row, const RopeSpec& spec) {
  require_row(spec, row.size());
  const std::span<float> part = row.subspan(static_cast<std::size_t>(spec.first_channel));
  const std::vector<float> old(part.begin(), part.begin() + spec.rotary_dim);
  const std::size_t pairs = pairs_of(spec);
  for (std::size_t i = 0; i < pairs; ++i) {
    part[2 * i] = old[i];
    part[2 * i + 1] = old[i + pairs];
  }
}

}  // namespace kvatlas
