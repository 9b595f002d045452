#include "simulator/serving/serving.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <fmt/core.h>

#include "core/errors.hpp"
#include "core/interruption.hpp"
#include "simulator/constants.hpp"

namespace kvatlas::sim {

namespace {

struct StreamShape {
  Tokens mean_prompt{0}, mean_output{0}, longest_prompt{0};
};

StreamShape stream_shape(const Stream& s) {
  double prompt = 0, output = 0;
  std::int64_t longest = 1;
  for (const Request& r : s.requests) {
    prompt += r.prompt;
    output += r.output;
    longest = std::max<std::int64_t>(longest, r.prompt);
  }
  const double n = static_cast<double>(s.requests.size());
  return {Tokens(static_cast<std::int64_t>(prompt / n + 0.5)), Tokens(static_cast<std::int64_t>(output / n + 0.5)), Tokens(longest)};
}

void check(const ServingSetup& setup, const Stream& stream) {
  if (stream.requests.empty()) throw InvalidArgument("the stream has no requests");
  if (setup.sequences < 1 || setup.sequences > (1 << 16)) throw InvalidArgument(cat("sequences is ", setup.sequences, ", must be from 1 to 65536"));
  for (const auto& [name, n] : {std::pair{"prefill_replicas", setup.prefill_replicas}, std::pair{"decode_replicas", setup.decode_replicas}, std::pair{"dp", setup.deployment.dp}})
    if (n < 1 || n > 1024) throw InvalidArgument(cat(name, " is ", n, ", must be from 1 to 1024"));
  for (const Request& r : stream.requests)
    if (r.prompt < 1 || r.output < 1 || !(r.arrive_s >= 0)) throw InvalidArgument("a request has no prompt, no output or a negative arrival");
}

/// A request on its way: to its replica at `at_s`.
struct Due {
  double at_s;
  std::int64_t id;
  int from;  // replica that hands it over; -1: from outside
  bool operator>(const Due& o) const { return at_s != o.at_s ? at_s > o.at_s : id > o.id; }
};

class Run {
 public:
  Run(const ServingSetup& setup, const Stream& stream)
      : setup_(setup), stream_(stream), shape_(stream_shape(stream)), cost_(setup.deployment, shape_.mean_prompt, shape_.mean_output, shape_.longest_prompt, most_sequences(setup)) {
    report_.progress.resize(stream.requests.size());
    prefill_replicas_ = setup.disaggregated ? setup.prefill_replicas : setup.deployment.dp;
    const int decoders = setup.disaggregated ? setup.decode_replicas : 0;
    for (int i = 0; i < prefill_replicas_ + decoders; ++i) {
      ReplicaLimits limits{.batched_tokens = setup.deployment.chunk.value, .sequences = setup.sequences, .prefix_credit = cost_.model().prefix_credit(),
                           .hands_over = setup.disaggregated && i < prefill_replicas_};
      replicas_.emplace_back(cost_, limits, stream, report_.progress, i);
    }
    for (Replica& r : replicas_) r.record(setup.most_spans > 0 ? &report_.spans : nullptr, setup.most_spans);
    link_free_.assign(replicas_.size(), 0.0);
    home_.assign(stream.requests.size(), 0);
  }

  ServingReport run() {
    if (cost_.pool_blocks() < 1) throw InvalidArgument(no_room());
    for (std::size_t i = 0; i < stream_.requests.size(); ++i)
      if (!stream_.requests[i].later_turn) opens_.push_back(static_cast<std::int64_t>(i));
    if (stream_.users > 0)
      for (std::int32_t u = 0; u < stream_.users && next_open_ < opens_.size(); ++u) due_.push({0.0, opens_[next_open_++], -1});
    for (;;) {
      interruption_point();
      // Of equal times arrivals come first, so that the next pass knows them.
      int next = 0;
      double end = replicas_[0].end_s();
      for (std::size_t i = 1; i < replicas_.size(); ++i)
        if (replicas_[i].end_s() < end) end = replicas_[i].end_s(), next = static_cast<int>(i);
      const double clocked = stream_.users == 0 && next_open_ < opens_.size() ? stream_.requests[static_cast<std::size_t>(opens_[next_open_])].arrive_s : kNever;
      const double due = due_.empty() ? kNever : due_.top().at_s;
      if (clocked <= end && clocked <= due) {
        if (clocked == kNever) break;
        arrive(opens_[next_open_++], clocked);
      } else if (due <= end) {
        const Due d = due_.top();
        due_.pop();
        d.from < 0 ? arrive(d.id, d.at_s) : hand_over(d);
      } else {
        Replica& r = replicas_[static_cast<std::size_t>(next)];
        r.complete();
        report_.most_blocks_used = std::max(report_.most_blocks_used, r.pool().in_use());
        for (const std::int64_t id : r.finished()) finished(id, end);
        for (const std::int64_t id : r.handed()) transfer(id, next, end);
      }
    }
    summarise();
    return std::move(report_);
  }

 private:
  static int most_sequences(const ServingSetup& s) { return static_cast<int>(std::min<std::int64_t>(s.sequences, s.deployment.chunk.value)); }

  Progress& at(std::int64_t id) { return report_.progress[static_cast<std::size_t>(id)]; }
  const Request& request(std::int64_t id) const { return stream_.requests[static_cast<std::size_t>(id)]; }

  /// The replica with the least to do; later turns of a conversation stay where their prefix is.
  std::size_t choose(std::size_t first, std::size_t last) const {
    std::size_t best = first;
    for (std::size_t i = first + 1; i < last; ++i)
      if (replicas_[i].outstanding() < replicas_[best].outstanding()) best = i;
    return best;
  }

  void arrive(std::int64_t id, double now) {
    at(id).arrive_s = now;
    const std::size_t home = request(id).later_turn ? home_[static_cast<std::size_t>(id)] : choose(0, static_cast<std::size_t>(prefill_replicas_));
    home_[static_cast<std::size_t>(id)] = static_cast<std::uint16_t>(home);
    if (replicas_[home].submit(id, now)) return;
    ++report_.refused;
    if (report_.refused_why.empty())
      report_.refused_why = cat("a request of ", request(id).prompt, " prompt and ", request(id).output, " output tokens takes ", cost_.whole_blocks(request(id).prompt, request(id).output),
                                " blocks, a replica has ", cost_.pool_blocks());
    finished(id, now);
  }

  void transfer(std::int64_t id, int from, double now) {
    double& free = link_free_[static_cast<std::size_t>(from)];
    const double seconds = constant(C::copy_submit_s) + cost_.prompt_bytes(request(id).prompt) / (cost_.model().link_bandwidth() * setup_.deployment.tp);
    free = std::max(free, now) + seconds;
    due_.push({free, id, from});
  }

  void hand_over(const Due& d) {
    replicas_[static_cast<std::size_t>(d.from)].release_handed(d.id, d.at_s);
    at(d.id).cache_arrives = true;
    const std::size_t to = choose(static_cast<std::size_t>(prefill_replicas_), replicas_.size());
    replicas_[to].submit(d.id, d.at_s);
  }

  void finished(std::int64_t id, double now) {
    const Request& r = request(id);
    if (r.next >= 0) {
      home_[static_cast<std::size_t>(r.next)] = home_[static_cast<std::size_t>(id)];
      due_.push({now, r.next, -1});
    } else if (stream_.users > 0 && next_open_ < opens_.size()) {
      due_.push({now, opens_[next_open_++], -1});
    }
  }

  std::string no_room() const {
    const Deployment& d = cost_.model().deployment();
    return cat("no cache fits on ", d.gpu.name, ": weights and workspace of ", d.model->slug, " leave nothing of ", fmt::format("{:.2f} GiB", cost_.model().available_bytes() / 0x1p30));
  }

  void summarise();

  const ServingSetup& setup_;
  const Stream& stream_;
  StreamShape shape_;
  ServingCost cost_;
  std::deque<Replica> replicas_;
  int prefill_replicas_ = 1;
  std::vector<double> link_free_;
  std::vector<std::uint16_t> home_;
  std::vector<std::int64_t> opens_;
  std::size_t next_open_ = 0;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  ServingReport report_;
};

void Run::summarise() {
  ServingReport& out = report_;
  std::vector<double> ttft, tpot, e2e, queue, ends, good_ends;
  double first = kNever, last = 0, output = 0;
  std::int64_t good = 0;
  out.requests = static_cast<std::int64_t>(stream_.requests.size());
  for (std::size_t i = 0; i < stream_.requests.size(); ++i) {
    const Progress& p = out.progress[i];
    if (p.state != Progress::State::done) continue;
    const Request& r = stream_.requests[i];
    ++out.completed;
    out.preemptions += p.preemptions;
    first = std::min(first, p.arrive_s);
    last = std::max(last, p.last_token_s);
    output += r.output;
    const double wait = p.first_token_s - p.arrive_s;
    const double each = r.output > 1 ? (p.last_token_s - p.first_token_s) / (r.output - 1) : 0.0;
    const bool meets = (!setup_.slo.ttft_s || wait <= *setup_.slo.ttft_s) && (!setup_.slo.tpot_s || each <= *setup_.slo.tpot_s);
    good += meets ? 1 : 0;
    ends.push_back(p.last_token_s);
    if (meets) good_ends.push_back(p.last_token_s);
    if (static_cast<std::int64_t>(i) < setup_.skip) continue;
    ttft.push_back(wait);
    if (r.output > 1) tpot.push_back(each);
    e2e.push_back(p.last_token_s - p.arrive_s);
    queue.push_back(p.scheduled_s - p.arrive_s);
  }
  out.reported = static_cast<std::int64_t>(e2e.size());
  if (out.completed > 0) {
    out.duration_s = last - first;
    const double n = static_cast<double>(out.completed);
    out.good_share = static_cast<double>(good) / n;
    if (out.duration_s > 0) {
      out.requests_per_s = n / out.duration_s;
      out.tokens_per_s = output / out.duration_s;
      out.goodput_per_s = static_cast<double>(good) / out.duration_s;
    }
    std::sort(ends.begin(), ends.end());
    const std::size_t a = ends.size() / 4, b = ends.size() - 1 - ends.size() / 4;
    const double window = ends[b] - ends[a];
    out.steady_requests_per_s = window > 0 ? static_cast<double>(b - a) / window : out.requests_per_s;
    const auto inside = std::count_if(good_ends.begin(), good_ends.end(), [&](double e) { return e > ends[a] && e <= ends[b]; });
    out.steady_goodput_per_s = window > 0 ? static_cast<double>(inside) / window : out.goodput_per_s;
  }
  out.ttft = percentiles(std::move(ttft));
  out.tpot = percentiles(std::move(tpot));
  out.e2e = percentiles(std::move(e2e));
  out.queue = percentiles(std::move(queue));
  out.blocks_returned = true;
  for (const Replica& r : replicas_) {
    const ReplicaCounts& c = r.counts();
    out.counts.prefilled_tokens += c.prefilled_tokens;
    out.counts.emitted_tokens += c.emitted_tokens;
    out.counts.hit_tokens += c.hit_tokens;
    out.counts.asked_tokens += c.asked_tokens;
    out.counts.preemptions += c.preemptions;
    out.counts.passes += c.passes;
    out.counts.spans += c.spans;
    out.counts.busy_s += c.busy_s;
    out.blocks_returned = out.blocks_returned && r.idle() && r.pool().private_blocks() == 0 && r.pool().in_use() == 0 && r.pool().consistent();
  }
  if (out.counts.asked_tokens > 0) out.prefix_hit_rate = static_cast<double>(out.counts.hit_tokens) / static_cast<double>(out.counts.asked_tokens);
  const Deployment& d = setup_.deployment;
  const double replicas = static_cast<double>(replicas_.size());
  out.gpu_hours = out.duration_s / 3600.0 * replicas * d.tp * d.pp;
  out.busy_share = out.duration_s > 0 ? out.counts.busy_s / (out.duration_s * replicas) : 0;
  out.pool_blocks = cost_.pool_blocks();
  out.kv_tokens = cost_.pool_blocks() * cost_.page();
  const Tokens middle = shape_.mean_prompt + Tokens(shape_.mean_output.value / 2);
  out.evidence = cost_.model().evidence(middle, cost_.model().decode(shape_.mean_prompt, middle, d.dp));
}

}  // namespace

Percentiles percentiles(std::vector<double> values) {
  Percentiles p;
  p.count = static_cast<std::int64_t>(values.size());
  if (values.empty()) return p;
  std::sort(values.begin(), values.end());
  // Nearest rank: the smallest value that at least this share of all does not exceed.
  const auto rank = [&](std::int64_t percent) { return values[static_cast<std::size_t>(ceil_div(p.count * percent, 100) - 1)]; };
  p.p50 = rank(50), p.p90 = rank(90), p.p99 = rank(99), p.most = values.back();
  double sum = 0;
  for (const double v : values) sum += v;
  p.mean = sum / static_cast<double>(p.count);
  return p;
}

ServingReport serve(const ServingSetup& setup, const Stream& stream) {
  check(setup, stream);
  return Run(setup, stream).run();
}

}  // namespace kvatlas::sim
