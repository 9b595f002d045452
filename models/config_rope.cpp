// Rotary embedding of a config: base, rotary width and every published form of rope_scaling.
#include "core/arith.hpp"
#include "core/errors.hpp"
#include "models/config_parts.hpp"

namespace kvatlas::models {

namespace {

constexpr double kLargest = 1e12;  // of any factor or base; keeps the tables finite

// 0.1 * mscale * ln(factor) + 1, through the canonical log2 so that every machine gets one value.
double yarn_mscale(double factor, double mscale) {
  constexpr double kLn2 = 0.6931471805599453;
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * (static_cast<double>(num::log2(static_cast<float>(factor))) * kLn2) + 1.0;
}

// YaRN's factor on cos and sin: given, by the two mscales of DeepSeek, else left to the scheme's rule.
// returns the factor on q.k that goes with it
double yarn_magnitude(Fields& scaling, RopeSpec& rope) {
  if (const auto given = scaling.number("attention_factor", 0.0, kLargest)) rope.attention_factor = *given;
  const auto mscale = scaling.number("mscale", 0.0, kLargest);
  const auto all_dim = scaling.number("mscale_all_dim", 0.0, kLargest);
  if (!all_dim || *all_dim == 0.0) return 1.0;
  const double whole = yarn_mscale(rope.factor, *all_dim);
  if (mscale) rope.attention_factor = yarn_mscale(rope.factor, *mscale) / whole;
  return whole * whole;
}

// Fills the scaling part of `rope` from one rope_scaling object.
// returns the factor on q.k, 1 but for DeepSeek's YaRN
double read_scaling(Fields& scaling, double context, RopeSpec& rope, Model& model) {
  double score_factor = 1.0;
  const auto new_name = scaling.text("rope_type");
  const auto old_name = scaling.text("type");
  const std::string type = new_name ? *new_name : old_name.value_or("default");
  const std::string field = scaling.full_name(new_name ? "rope_type" : "type");
  const auto original = scaling.integer("original_max_position_embeddings", 1, kMaxContext);
  const auto factor = scaling.number("factor", 1.0, kLargest);
  const auto needs_factor = [&] {
    if (!factor) throw InvalidArgument(cat(scaling.full_name("factor"), " is missing, must be a number of at least 1"));
    return *factor;
  };
  rope.original_context = original ? static_cast<double>(*original) : context;
  if (type == "default" || type == "mrope") {
    rope.original_context = 0.0;  // mrope gives all axes one position in text, which is plain rotation
    scaling.ignore("mrope_section");
  } else if (type == "linear") {
    rope.scaling = RopeScaling::linear;
    rope.factor = needs_factor();
    rope.original_context = 0.0;
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::yarn;
    rope.factor = needs_factor();
    rope.beta_fast = scaling.number("beta_fast", 0.0, kLargest).value_or(rope.beta_fast);
    rope.beta_slow = scaling.number("beta_slow", 0.0, kLargest).value_or(rope.beta_slow);
    rope.yarn_truncate = scaling.boolean("truncate").value_or(true);
    score_factor = yarn_magnitude(scaling, rope);
  } else if (type == "llama3") {
    if (!original)
      throw InvalidArgument(cat(scaling.full_name("original_max_position_embeddings"),
                                " is missing, must be the context before scaling"));
    rope.scaling = RopeScaling::llama3;
    rope.factor = needs_factor();
    rope.low_freq_factor = scaling.number("low_freq_factor", 1e-6, kLargest).value_or(rope.low_freq_factor);
    rope.high_freq_factor = scaling.number("high_freq_factor", 1e-6, kLargest).value_or(rope.high_freq_factor);
    if (rope.high_freq_factor <= rope.low_freq_factor)
      throw InvalidArgument(cat(scaling.full_name("high_freq_factor"), " is ", rope.high_freq_factor,
                                ", must be above low_freq_factor (", rope.low_freq_factor, ")"));
  } else if (type == "dynamic") {
    rope.original_context = 0.0;
    model.warnings.push_back(cat(field,
                                 " is \"dynamic\": its rotations change with the context, so that rotated keys in "
                                 "a cache go stale; imported without scaling"));
  } else if (type == "longrope" || type == "su") {
    rope.original_context = 0.0;
    for (const char* list : {"short_factor", "long_factor", "short_mscale", "long_mscale"}) scaling.ignore(list);
    model.warnings.push_back(
        cat(field, " is \"", type, "\": factors for each channel are not modelled; imported without scaling"));
  } else {
    throw InvalidArgument(
        cat(field, " is \"", type, "\", must be one of default, linear, dynamic, yarn, llama3, longrope, mrope"));
  }
  return score_factor;
}

int rotary_dim(Fields& config, const RopePlace& place, std::optional<double> fraction) {
  if (const auto given = config.integer("rotary_dim", 0, kMaxHeadDim)) {
    if (*given % 2 != 0 || *given > place.rotary_width)
      throw InvalidArgument(
          cat("rotary_dim is ", *given, ", must be even and at most head_dim (", place.rotary_width, ")"));
    return static_cast<int>(*given);
  }
  const double share = fraction.value_or(1.0);
  const int channels = static_cast<int>(static_cast<double>(place.rotary_width) * share);
  if (channels % 2 != 0)
    throw InvalidArgument(cat("partial_rotary_factor is ", share,
                              ", must leave an even number of channels of head_dim (", place.rotary_width, ")"));
  return channels;
}

}  // namespace

Ropes import_ropes(Fields& config, const Family& family, RopePlace place, Model& model) {
  const double context = model.trained_context ? static_cast<double>(model.trained_context->value) : 0.0;
  RopeSpec base;
  base.first_channel = place.first_channel;
  base.layout = family.layout;
  if (const auto interleaved = config.boolean("rope_interleave"))
    base.layout = *interleaved ? RopeLayout::interleaved : RopeLayout::half_split;
  base.base = config.number("rope_theta", 1.0, kLargest).value_or(base.base);
  std::optional<double> fraction = config.number("partial_rotary_factor", 0.0, 1.0);
  const std::string_view named = config.present({"rope_scaling", "rope_parameters"});
  std::optional<Fields> scaling;
  if (!named.empty()) scaling = config.object(named);

  Ropes ropes{base, base};
  const auto read = [&](Fields& from, RopeSpec& rope) {
    rope.base = from.number("rope_theta", 1.0, kLargest).value_or(rope.base);
    if (const auto f = from.number("partial_rotary_factor", 0.0, 1.0)) fraction = f;
    ropes.score_factor = read_scaling(from, context, rope, model);
  };
  if (scaling && (scaling->has("full_attention") || scaling->has("sliding_attention"))) {
    if (auto full = scaling->object("full_attention")) read(*full, ropes.full);
    if (auto sliding = scaling->object("sliding_attention")) read(*sliding, ropes.sliding);
  } else {
    if (scaling) read(*scaling, ropes.full);
    ropes.sliding = ropes.full;
  }
  // Gemma 3 rotates windowed layers at a base of their own, without scaling.
  if (const auto local = config.number("rope_local_base_freq", 1.0, kLargest)) {
    ropes.sliding = base;
    ropes.sliding.base = *local;
  }
  ropes.full.rotary_dim = ropes.sliding.rotary_dim = rotary_dim(config, place, fraction);
  return ropes;
}

}  // namespace kvatlas::models
