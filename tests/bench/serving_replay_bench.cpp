// Replays measured request traces through the serving simulator, nothing fitted on them:
//   kvatlas_serving_replay_bench serving_requests.csv [memory share, default 0.9]
// Columns: gpu, model, tp, dp, max_num_seqs, max_batched_tokens, prompt, output, arrive_s, scheduled_s, first_token_s, last_token_s.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "models/registry.hpp"
#include "simulator/serving/serving.hpp"

namespace {

using namespace kvatlas;

struct Row {
  sim::Request request;
  double scheduled_s, first_s, last_s;
};
struct Group {
  std::map<std::string, std::string> setting;
  std::vector<Row> rows;
};

std::map<std::string, Group> read(const char* path) {
  const auto bytes = io::read_file(path);
  std::istringstream text(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  const auto split = [](const std::string& line) {
    std::vector<std::string> cells;
    std::istringstream in(line);
    for (std::string cell; std::getline(in, cell, ',');) cells.push_back(cell);
    return cells;
  };
  std::string line;
  std::getline(text, line);
  const auto names = split(line);
  std::map<std::string, Group> groups;
  while (std::getline(text, line)) {
    std::map<std::string, std::string> row;
    const auto cells = split(line);
    for (std::size_t i = 0; i < names.size() && i < cells.size(); ++i) row[names[i]] = cells[i];
    const auto number = [&](const char* key) { return std::atof(row.at(key).c_str()); };
    Group& g = groups[row.at("gpu") + " " + row.at("model")];
    g.setting = row;
    g.rows.push_back({{.arrive_s = number("arrive_s"), .prompt = static_cast<std::int32_t>(number("prompt")), .output = static_cast<std::int32_t>(number("output"))},
                      number("scheduled_s"), number("first_token_s"), number("last_token_s")});
  }
  return groups;
}

void line(const char* name, double measured, double predicted) {
  std::printf("  %-26s measured %9.4f  predicted %9.4f  error %+6.1f %%\n", name, measured, predicted, 100 * (predicted / measured - 1));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: kvatlas_serving_replay_bench serving_requests.csv [memory share]\n");
    return 2;
  }
  try {
    for (auto& [name, g] : read(argv[1])) {
      std::stable_sort(g.rows.begin(), g.rows.end(), [](const Row& a, const Row& b) { return a.request.arrive_s < b.request.arrive_s; });
      const models::Model& model = models::find_model(g.setting.at("model") == "Llama-3.1-8B" ? "llama-3.1-8b" : g.setting.at("model"));
      sim::ServingSetup setup{.deployment = {.model = &model, .gpu = sim::find_gpu(g.setting.at("gpu")), .tp = std::atoi(g.setting.at("tp").c_str()), .dp = std::atoi(g.setting.at("dp").c_str())},
                              .sequences = std::atoll(g.setting.at("max_num_seqs").c_str())};
      setup.deployment.chunk = Tokens(std::atoll(g.setting.at("max_batched_tokens").c_str()));
      if (argc > 2) setup.deployment.gpu_memory_utilization = std::atof(argv[2]);
      sim::Stream stream;
      std::vector<double> ttft, tpot, e2e, queue, first, last;
      double resident = 0;
      for (const Row& r : g.rows) {
        stream.requests.push_back(r.request);
        ttft.push_back(r.first_s - r.request.arrive_s);
        if (r.request.output > 1) tpot.push_back((r.last_s - r.first_s) / (r.request.output - 1));
        e2e.push_back(r.last_s - r.request.arrive_s);
        queue.push_back(r.scheduled_s - r.request.arrive_s);
      }
      for (const Row& at : g.rows) {  // tokens in the cache when somebody's first token came
        double tokens = 0;
        for (const Row& r : g.rows)
          if (r.scheduled_s <= at.first_s && at.first_s < r.last_s)
            tokens += r.request.prompt + (at.first_s > r.first_s ? (at.first_s - r.first_s) / (r.last_s - r.first_s) * r.request.output : 0);
        resident = std::max(resident, tokens);
      }
      const sim::ServingReport p = sim::serve(setup, stream);
      std::printf("%s, %zu requests, %lld at most at once, passes of %lld tokens\n", name.c_str(), g.rows.size(), static_cast<long long>(setup.sequences), static_cast<long long>(setup.deployment.chunk.value));
      std::printf("  cache: at most %.0f tokens resident in the measured run; predicted pool %lld tokens; %lld preemptions predicted\n", resident, static_cast<long long>(p.kv_tokens), static_cast<long long>(p.preemptions));
      const sim::Percentiles mt = sim::percentiles(ttft), mp = sim::percentiles(tpot), me = sim::percentiles(e2e), mq = sim::percentiles(queue);
      line("TPOT mean, s", mp.mean, p.tpot.mean);
      line("end to end p50, s", me.p50, p.e2e.p50);
      line("TTFT mean, s", mt.mean, p.ttft.mean);
      line("TTFT p50, s", mt.p50, p.ttft.p50);
      line("queue mean, s", mq.mean, p.queue.mean);
      double measured_end = 0;
      for (const Row& r : g.rows) measured_end = std::max(measured_end, r.last_s);
      line("whole run, s", measured_end, p.duration_s);
    }
  } catch (const Error& e) {
    std::fprintf(stderr, "kvatlas_serving_replay_bench: %s\n", e.what());
    return 1;
  }
  return 0;
}
