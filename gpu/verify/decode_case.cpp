#include <algorithm>
#include <optional>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/decode_traffic.hpp"
#include "gpu/verify/integer_rows.hpp"
#include "reference/primitives/attention.hpp"

namespace kvatlas::gpu {

namespace {

/// One side of the cache of all sequences as the kernel's buffers, and the values that attention sees.
struct SideImage {
  std::vector<std::uint8_t> codes, scales, zeros, plain;
  std::vector<char> codes_used, scales_used, zeros_used, plain_used;
  SideStrides strides;
  std::vector<Array> values;  // [sequences * kv_heads]
  std::vector<CodedHead> heads;  // the same, of what is coded
};

struct Image {
  kernels::DecodeLaunch entry;
  std::vector<DecodeSequence> sequences;
  std::vector<std::int32_t> pages;
  std::vector<std::uint16_t> q;
  std::vector<Array> queries;  // [sequences * q_heads], [1, dim]
  SideImage k, v;
  std::vector<std::uint16_t> want;
  std::vector<float> want_partial;  // [rows][max_spans][dim], then maximum and sum; NaN where nothing is written
  std::vector<float> want_state;
  float scale = 0.0F;
};

/// Spans of 256 tokens are single spans of their own length, too: their states can be compared one by one.
bool states_are_known(std::int64_t context) { return span_count(context) > 1 && span_length(context) == 256; }

void put(std::vector<std::uint8_t>& to, std::vector<char>& used, std::int64_t at, std::span<const std::uint8_t> bytes) {
  std::copy(bytes.begin(), bytes.end(), to.begin() + at);
  std::fill_n(used.begin() + at, bytes.size(), char{1});
}

void lay_out(SideImage& image, const KernelFormat& f, std::int64_t page, std::int64_t pages, std::int64_t residual_rows, int kv_heads, std::size_t sequences, int dim) {
  image.strides = {.codes = round_up(f.code_bytes_of(page, dim), 32), .scales = round_up(f.scale_bytes_of(page, dim), 32),
                   .zeros = round_up(f.zero_bytes_of(page, dim), 32), .plain = residual_rows * dim * 2};
  const auto make = [&](std::vector<std::uint8_t>& bytes, std::vector<char>& used, std::int64_t count) {
    bytes.assign(static_cast<std::size_t>(std::max<std::int64_t>(count, 16)), 0);
    used.assign(bytes.size(), 0);
  };
  make(image.codes, image.codes_used, pages * kv_heads * image.strides.codes);
  make(image.scales, image.scales_used, pages * kv_heads * image.strides.scales);
  make(image.zeros, image.zeros_used, pages * kv_heads * image.strides.zeros);
  make(image.plain, image.plain_used, static_cast<std::int64_t>(sequences) * kv_heads * image.strides.plain);
}

/// Puts the rows of one head of one sequence in their pages and its plain tail in the residual buffer.
void fill(SideImage& image, const KernelFormat& f, Dtype dtype, const Array& rows, std::int64_t coded, std::span<const std::int32_t> pages, std::int64_t page,
          std::int64_t slot, int head, int kv_heads) {
  const int dim = static_cast<int>(rows.dims()[1]);
  const std::int64_t count = rows.dims()[0];
  const auto table = case_table(f);
  Array values({count, dim});
  CodedHead h{.codes = {}, .scales = {}, .zeros = {}, .values = Array({0, dim})};
  if (coded > 0) {
    h = reference_codes(f, dtype, rows.view().slice(0, 0, coded), case_head_scale(f), table);
    const auto part = [&](const std::vector<std::uint8_t>& from, std::vector<std::uint8_t>& to, std::vector<char>& used, std::int64_t stride, auto bytes_of) {
      for (std::int64_t t = 0; t < coded; t += page) {
        const std::int64_t first = bytes_of(t), last = bytes_of(std::min(coded, t + page));
        put(to, used, (std::int64_t{pages[static_cast<std::size_t>(t / page)]} * kv_heads + head) * stride, std::span(from).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first)));
      }
    };
    part(h.codes, image.codes, image.codes_used, image.strides.codes, [&](std::int64_t t) { return f.code_bytes_of(t, dim); });
    part(h.scales, image.scales, image.scales_used, image.strides.scales, [&](std::int64_t t) { return f.scale_bytes_of(t, dim); });
    part(h.zeros, image.zeros, image.zeros_used, image.strides.zeros, [&](std::int64_t t) { return f.zero_bytes_of(t, dim); });
    for (std::int64_t t = 0; t < coded; ++t) std::ranges::copy(h.values.view().row(t), values.view().row(t).begin());
  }
  if (coded < count) {
    const auto bits = bits_of_rows(rows.view().slice(0, coded, count - coded), dtype);
    put(image.plain, image.plain_used, slot * image.strides.plain, std::span(reinterpret_cast<const std::uint8_t*>(bits.data()), bits.size() * 2));
    for (std::int64_t t = coded; t < count; ++t) std::ranges::copy(rows.view().row(t), values.view().row(t).begin());
  }
  image.values.push_back(std::move(values));
  image.heads.push_back(std::move(h));
}

std::int64_t coded_tokens(const DecodeShape& s, const KernelFormat& f, std::int64_t context, std::int64_t window) {
  if (!s.residual || f.scheme == CodeScheme::plain) return context;
  return f.along_tokens() ? context - context % window : std::max<std::int64_t>(0, context - window);
}

const char* name_of(DecodeContent content) {
  static constexpr const char* kNames[] = {"", "equal scores ", "one dominant score ", "zero scales ", "largest codes "};
  return kNames[static_cast<std::size_t>(content)];
}

Array draw_queries(DecodeContent content, const DecodeShape& s, std::uint64_t seed) {
  Array q = draw_rows(s.q_per_kv, s.dim, s.dtype, seed);
  for (float& f : q.values()) f = content == DecodeContent::equal_scores ? 0.0F : content == DecodeContent::largest_codes ? 1.0F : f;
  return q;
}

Array draw_keys(DecodeContent content, std::int64_t context, const DecodeShape& s, const Array& q, std::uint64_t seed) {
  Array k = draw_rows(context, s.dim, s.dtype, seed);
  for (std::int64_t t = 0; t < context; ++t)
    for (std::int64_t c = 0; c < s.dim; ++c) {
      float& f = k.view()(t, c);
      if (content == DecodeContent::dominant) f = t == context / 3 ? 4.0F * q.view()(0, c) : f / 256.0F;
      if (content == DecodeContent::zero_scales) f = static_cast<float>(c % 9) / 8.0F;
      if (content == DecodeContent::largest_codes) f = t % 32 == 0 ? 0.0F : 1.0F;
    }
  num::round_to(s.dtype, k.values());
  return k;
}

Array draw_values(DecodeContent content, std::int64_t context, const DecodeShape& s, std::uint64_t seed) {
  Array v = draw_rows(context, s.dim, s.dtype, seed);
  for (std::int64_t t = 0; t < context; ++t)
    for (std::int64_t c = 0; c < s.dim; ++c) {
      float& f = v.view()(t, c);
      if (content == DecodeContent::zero_scales) f = static_cast<float>(t % 9) / 8.0F;
      if (content == DecodeContent::largest_codes) f = c % 32 == 0 ? 0.0F : 1.0F;
    }
  num::round_to(s.dtype, v.values());
  return v;
}

Image make_image(const DecodeInstance& instance, const DecodeCase& of) {
  const DecodeShape& s = instance.shape;
  if (of.page % 16 != 0 || of.page % s.k.block_rows() != 0 || of.page % s.v.block_rows() != 0)
    throw InvalidArgument(cat("page is ", of.page, " tokens, must be a multiple of 16 and of groups along tokens"));
  for (const std::int32_t context : of.contexts)
    if (context < 1) throw InvalidArgument(cat("context is ", context, ", must be at least 1 token"));
  Image image;
  const std::int32_t longest = *std::ranges::max_element(of.contexts);
  const std::int64_t per_sequence = ceil_div(longest, of.page);
  const auto n = of.contexts.size();
  const std::int64_t all_pages = static_cast<std::int64_t>(n) * per_sequence + 1;
  for (std::int64_t i = 0; i + 1 < all_pages; ++i) image.pages.push_back(static_cast<std::int32_t>(all_pages - 1 - i));  // last pages first
  std::int64_t residual = 0, spans = 1;
  for (const std::int32_t context : of.contexts) {
    DecodeSequence seq{.context = context, .k_coded = static_cast<std::int32_t>(coded_tokens(s, s.k, context, of.residual_window)),
                       .v_coded = static_cast<std::int32_t>(coded_tokens(s, s.v, context, of.residual_window))};
    residual = std::max<std::int64_t>({residual, context - seq.k_coded, context - seq.v_coded});
    spans = std::max(spans, span_count(context));
    image.sequences.push_back(seq);
  }
  lay_out(image.k, s.k, of.page, all_pages, residual, of.kv_heads, n, s.dim);
  lay_out(image.v, s.v, of.page, all_pages, residual, of.kv_heads, n, s.dim);
  image.scale = logit_scale(uniform_shape(1, 1, 1, s.dim, s.dtype).classes.front());
  for (std::size_t i = 0; i < n; ++i) {
    const std::int64_t context = of.contexts[i];
    const auto pages = std::span(image.pages).subspan(i * static_cast<std::size_t>(per_sequence), static_cast<std::size_t>(per_sequence));
    for (int h = 0; h < of.kv_heads; ++h) {
      // A sequence's rows depend on its length alone, so that it is the same in every batch.
      const std::uint64_t seed = of.seed * 1000003 + static_cast<std::uint64_t>(context) * 131 + static_cast<std::uint64_t>(h) * 17;
      const std::int64_t slot = static_cast<std::int64_t>(i) * of.kv_heads + h;
      const Array q = draw_queries(of.content, s, seed + 2);
      fill(image.k, s.k, s.dtype, draw_keys(of.content, context, s, q, seed), image.sequences[i].k_coded, pages, of.page, slot, h, of.kv_heads);
      fill(image.v, s.v, s.dtype, draw_values(of.content, context, s, seed + 1), image.sequences[i].v_coded, pages, of.page, slot, h, of.kv_heads);
      const auto bits = bits_of_rows(q.view(), s.dtype);
      image.q.insert(image.q.end(), bits.begin(), bits.end());
      const auto slot_index = static_cast<std::size_t>(slot);
      for (int g = 0; g < s.q_per_kv; ++g) {
        std::vector<float> x(static_cast<std::size_t>(context)), out(static_cast<std::size_t>(s.dim));
        const Array &keys = image.k.values[slot_index], &values = image.v.values[slot_index];
        const auto integer = [&] { return IntegerRows(s.v, image.v.heads[slot_index], image.sequences[i].v_coded, values.view()); };
        if (instance.integer_tile > 0) {
          integer_logits(q.view().row(g), IntegerRows(s.k, image.k.heads[slot_index], image.sequences[i].k_coded, keys.view()).rows(), image.scale, x);
          finish(integer_part(x, integer().rows(), instance.integer_tile), out);
        } else {
          logits(q.view().row(g), keys.view(), image.scale, x);
          finish(softmax_part(x, values.view()), out);
        }
        for (const float f : out) image.want.push_back(static_cast<std::uint16_t>(num::encode(s.dtype, f)));
        for (std::int64_t span = 0; span < spans; ++span) {
          const std::int64_t first = span * span_length(context), count = std::min(span_length(context), context - first);
          if (!states_are_known(context) || count <= 0) {
            image.want_partial.insert(image.want_partial.end(), static_cast<std::size_t>(s.dim), num::quiet_nan());
            image.want_state.insert(image.want_state.end(), 2, num::quiet_nan());
            continue;
          }
          const auto of_span = std::span(x).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
          const SoftmaxPart part = instance.integer_tile > 0 ? integer_span(of_span, integer().rows(), first, instance.integer_tile) : softmax_part(of_span, values.view().slice(0, first, count));
          image.want_partial.insert(image.want_partial.end(), part.acc.begin(), part.acc.end());
          image.want_state.insert(image.want_state.end(), {part.max, part.sum});
        }
      }
    }
  }
  image.entry = {.k_format = s.k, .v_format = s.v, .dim = s.dim, .q_per_kv = s.q_per_kv, .kv_heads = of.kv_heads, .page = of.page, .pages_per_sequence = per_sequence,
                 .max_spans = spans, .tile = instance.integer_tile > 0 ? instance.integer_tile : kTile, .k = image.k.strides, .v = image.v.strides};
  return image;
}

GlobalPtr<const std::uint8_t> upload_part(DeviceMemory& memory, const char* name, const std::vector<std::uint8_t>& bytes, const std::vector<char>& used) {
  const auto p = memory.upload(name, bytes);
  for (std::size_t i = 0; i < used.size(); ++i)
    if (used[i] == 0) DeviceMemory::forget(p, static_cast<std::int64_t>(i), 1);
  return p;
}

DecodeSide<SimCtx> upload_side(DeviceMemory& memory, const SideImage& image, const KernelFormat& f, int kv_heads) {
  DecodeSide<SimCtx> side;
  side.codes = upload_part(memory, "codes", image.codes, image.codes_used);
  side.scales = upload_part(memory, "scales", image.scales, image.scales_used);
  side.zeros = upload_part(memory, "zeros", image.zeros, image.zeros_used);
  side.plain = upload_part(memory, "plain rows", image.plain, image.plain_used);
  std::vector<float> factors = case_table(f);
  if (factors.empty()) factors.assign(static_cast<std::size_t>(kv_heads), case_head_scale(f));
  side.factors = memory.upload("factors", factors);
  side.strides = image.strides;
  return side;
}

struct Outcome {
  LaunchReport attention;
  std::optional<LaunchReport> merge;
  std::vector<std::uint16_t> out;
  std::string unwritten;
  std::string partial_differs;  // first state of a span that is not the reference's
};

/// Compares the states of spans, where the reference's are known, by bits.
std::string compare_states(const DeviceMemory& memory, const DecodeArgs<SimCtx>& a, const Image& image, int dim) {
  for (std::size_t i = 0; i < image.want_state.size(); i += 2) {
    if (num::is_nan(image.want_state[i])) continue;
    const auto at = static_cast<std::int64_t>(i / 2);
    const Vec<float, 2> state = memory.download(a.state + at, 1).front();
    if (num::bits_of(state.v[0]) != num::bits_of(image.want_state[i]) || num::bits_of(state.v[1]) != num::bits_of(image.want_state[i + 1]))
      return cat("maximum and sum of partial ", at, " are ", state.v[0], " and ", state.v[1], ", the reference has ", image.want_state[i], " and ", image.want_state[i + 1]);
    const auto acc = memory.download(a.partial + at * dim, dim);
    for (std::size_t c = 0; c < acc.size(); ++c)
      if (const float want = image.want_partial[static_cast<std::size_t>(at * dim) + c]; num::bits_of(acc[c]) != num::bits_of(want))
        return cat("channel ", c, " of partial ", at, " is ", acc[c], ", the reference has ", want);
  }
  return {};
}

Outcome launch(const DecodeInstance& instance, const Image& image, const Schedule& schedule) {
  const DecodeShape& s = instance.shape;
  const auto n = static_cast<std::int64_t>(image.sequences.size());
  const std::int64_t rows = n * image.entry.kv_heads * s.q_per_kv;
  DeviceMemory memory;
  DecodeArgs<SimCtx> a;
  a.sequences = memory.upload("sequences", image.sequences);
  a.pages = memory.upload("pages", image.pages);
  a.q = memory.upload("q", image.q);
  a.k = upload_side(memory, image.k, s.k, image.entry.kv_heads);
  a.v = upload_side(memory, image.v, s.v, image.entry.kv_heads);
  a.out = memory.allocate<std::uint16_t>("out", rows * s.dim);
  a.partial = memory.allocate<float>("partial", rows * image.entry.max_spans * s.dim);
  a.state = memory.allocate<Vec<float, 2>>("state", rows * image.entry.max_spans);
  a.page = image.entry.page;
  a.pages_per_sequence = image.entry.pages_per_sequence;
  a.max_spans = image.entry.max_spans;
  a.kv_heads = image.entry.kv_heads;
  a.scale = image.scale;
  Executor executor;
  Outcome o;
  const GpuLimits& gpu = gpu_limits(instance.shared_bytes > (99 << 10) ? "sm_80" : "sm_86");
  o.attention = instance.run(executor, {.grid = {image.entry.max_spans, image.entry.kv_heads, n}, .threads = s.threads(), .shared_bytes = instance.shared_bytes, .gpu = &gpu}, schedule, a);
  if (!o.attention.completed) return o;
  try {
    o.partial_differs = compare_states(memory, a, image, s.dim);
  } catch (const InvalidArgument& e) {
    o.partial_differs = e.what();
  }
  if (image.entry.max_spans > 1) {
    o.merge = instance.merge(executor, {.grid = {std::int64_t{image.entry.kv_heads} * s.q_per_kv, n}, .threads = s.dim}, schedule, a);
    if (!o.merge->completed) return o;
  }
  try {
    o.out = memory.download(a.out, rows * s.dim);
  } catch (const InvalidArgument& e) {
    o.unwritten = e.what();
  }
  return o;
}

}  // namespace

std::vector<Verdict> verify_decode(const DecodeInstance& instance, const DecodeCase& of, std::span<const Schedule> schedules) {
  const DecodeShape& s = instance.shape;
  Image image = make_image(instance, of);
  image.entry.sequences = image.sequences;
  image.entry.pages = image.pages;
  std::string contexts;
  for (const std::int32_t c : of.contexts) contexts += cat(contexts.empty() ? "" : ",", c);
  const std::string shape = cat(of.content == DecodeContent::drawn ? "" : name_of(of.content), "contexts=", contexts, " kv_heads=", of.kv_heads, " q_per_kv=", s.q_per_kv, " dim=", s.dim, " page=", of.page);
  Verdict v{.kernel = instance.integer_tile > 0 ? "integer_decode" : "decode_attention", .format = cat(name_of(s.k, s.dtype), '+', name_of(s.v, s.dtype)), .shape = shape};
  v.planned = image.entry.traffic();
  v.shared_bytes = instance.shared_bytes;
  v.floor_bytes = image.entry.floor_bytes();
  v.partials_bytes = image.entry.partial_bytes();
  Verdict merge{.kernel = "span_merge", .format = s.dtype == Dtype::bf16 ? "bf16" : "fp16", .shape = shape};
  merge.planned = image.entry.merge_traffic();
  for (const Schedule& schedule : schedules) {
    const Outcome o = launch(instance, image, schedule);
    note_launch(v, o.attention, schedule);
    if (o.merge) note_launch(merge, *o.merge, schedule);
    if (!o.partial_differs.empty()) {
      v.bit_exact = false;
      if (v.why.empty()) v.why = o.partial_differs;
    }
    Verdict& last = o.merge ? merge : v;
    if (o.out != image.want) {
      last.bit_exact = false;
      if (o.merge) v.bit_exact = false;  // which of the two differs, the output alone does not say
      const auto at = std::ranges::mismatch(o.out, image.want).in1 - o.out.begin();
      if (last.why.empty())
        last.why = o.out.empty() ? cat("no output: ", o.unwritten) : cat("output ", at, " is ", num::decode(s.dtype, o.out[static_cast<std::size_t>(at)]), ", the reference has ", num::decode(s.dtype, image.want[static_cast<std::size_t>(at)]));
    }
    v.output_hash = merge.output_hash = hash_bytes(std::as_bytes(std::span(o.out)));
  }
  if (image.entry.max_spans > 1) {
    merge.floor_bytes = image.entry.merge_floor_bytes();
    return {v, merge};
  }
  return {v};
}

std::vector<std::uint16_t> decode_output(const DecodeInstance& instance, const DecodeCase& of, const Schedule& schedule) {
  Image image = make_image(instance, of);
  return launch(instance, image, schedule).out;
}

}  // namespace kvatlas::gpu
