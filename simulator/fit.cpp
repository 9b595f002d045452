#include "simulator/fit.hpp"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/errors.hpp"
#include "simulator/constants.hpp"

namespace kvatlas::sim {

namespace {

/// Start, bounds and pull of a constant. A fit leaves the start where the rows say nothing; outside the bounds nothing is physical.
struct Range {
  double start, low, high, pull;
};
constexpr Range kGpuRanges[kGpuConstants] = {{0.87, 0.6, 1.0, 0.3}, {3, 1.05, 12, 0.3}, {0.7, 0.4, 1.3, 0.5}, {1.2, 0.4, 2.5, 1.0}};
constexpr Range kDecodeRanges[kProfileConstants] = {{8e-6, 1e-6, 4e-5, 0.15}, {1.5e-6, 2e-8, 3e-5, 0.15}, {2, 0.3, 8, 0.3},
                                                    {0.4, 0.02, 1.5, 0.3},    {0.7, 0.02, 1, 0.3},        {2e-6, 3e-7, 2e-5, 0.3}};
constexpr Range kPrefillRanges[kProfileConstants] = {{1e-5, 2e-6, 6e-5, 0.2}, {0.8, 0.1, 3, 0.2}, {1.3, 0.2, 12, 0.2},
                                                     {1e-6, 1e-8, 2e-5, 0.2}, {0.8, 0.05, 4, 0.2}, {0.5, 0.05, 20, 0.2}};
constexpr Range kMatrixRanges[kProfileConstants] = {{4e-6, 5e-7, 3e-5, 0.3}, {1, 0.3, 1.6, 0.3},   {1.3, 0.3, 9, 0.3},
                                                    {1e-6, 1e-8, 2e-5, 0.3}, {0.06, 0.01, 0.6, 0.3}, {0.95, 0.5, 1.06, 0.3}};
constexpr Range kCollectiveRanges[kProfileConstants] = {{7e-6, 1e-6, 6e-5, 0.1}, {1e-6, 1e-8, 1e-5, 0.1}, {3, 0.8, 40, 0.1},
                                                        {1e-5, 1e-8, 1e-4, 0.1}, {1.2, 0.9, 4, 0.1},     {1e-6, 1e-8, 3e-5, 0.1}};
constexpr Range kLinkRanges[kLinkConstants] = {{1, 0.3, 3, 0.5}, {0.7, 0.02, 1, 0.5}, {0.7, 0.02, 1, 0.5}};
constexpr Range kRateRange = {14, 4, 60, 0.5};

const Range& profile_range(KernelFamily family, std::size_t i) {
  switch (family) {
    case KernelFamily::decode:
    case KernelFamily::latent: return kDecodeRanges[i];
    case KernelFamily::prefill: return kPrefillRanges[i];
    case KernelFamily::matrix: return kMatrixRanges[i];
    case KernelFamily::collective: break;
  }
  return kCollectiveRanges[i];
}

double fallback_rate(const Measurement& row) {
  return value_rate(row.gpu->compute_capability.c_str(), row.bits == 8 ? CodeFormat{.kind = CodeKind::fp8, .bits = 8} : CodeFormat::plain(Dtype::bf16)).ideal;
}

/// Of a kernel on one board.
double seconds_of(const Machine& machine, const GpuConstants& g, const Profile& p, double rate, const Measurement& row) {
  switch (row.family) {
    case KernelFamily::decode:
    case KernelFamily::latent: return decode_terms(machine, g, p, std::get<DecodeWork>(row.work), row.l2_fill, rate).seconds();
    case KernelFamily::prefill: return prefill_terms(machine, g, p, std::get<PrefillWork>(row.work)).seconds();
    case KernelFamily::matrix:
    case KernelFamily::collective: break;
  }
  return matrix_terms(machine, g, p, std::get<MatrixWork>(row.work)).seconds();
}

/// A row tied to the constants that it depends on.
struct Tied {
  const Measurement* row;
  Machine machine;
  int board, profile, rate;  // board: of gpus, or of links for collectives; rate -1: not fp8
  double fallback_rate, weight;
};

/// Levenberg-Marquardt over the logarithms of the constants of one family, with a pseudo-Huber loss on the log ratio.
class Fitter {
 public:
  Fitter(Calibration& calibration, const std::vector<Measurement>& rows, KernelFamily family) : c_(calibration), family_(family) {
    if (family == KernelFamily::decode) {
      boards_ = static_cast<int>(c_.gpus.size()), board_constants_ = kGpuConstants, board_ranges_ = kGpuRanges;
    } else if (family == KernelFamily::collective) {
      boards_ = static_cast<int>(c_.links.size()), board_constants_ = kLinkConstants, board_ranges_ = kLinkRanges;
    }
    profile_offset_ = boards_ * board_constants_;
    rate_offset_ = profile_offset_ + kProfileConstants * static_cast<int>(c_.profiles.size());
    size_ = rate_offset_ + static_cast<int>(c_.rates.size());
    std::int64_t turn = 0;
    for (const Measurement& row : rows) {
      if (row.family != family) continue;
      // Short attention calls are many and alike: one in four speaks for them.
      if (family == KernelFamily::decode && row.subset == Subset::overhead && ++turn % 4 != 0) continue;
      const int profile = c_.measured_profile(family, row.framework, row.kernel, row.gpu->compute_capability, row.bits, row.group);
      const int board = family == KernelFamily::collective ? c_.find_link(row.gpu->slug) : c_.find_gpu(row.gpu->slug);
      if (profile < 0 || board < 0) continue;
      int rate = -1;
      if (family == KernelFamily::decode && row.bits == 8)
        for (std::size_t i = 0; i < c_.rates.size(); ++i)
          if (c_.rates[i].compute_capability == row.gpu->compute_capability) rate = static_cast<int>(i);
      rows_.push_back({&row, machine_of(*row.gpu), board, profile, rate, row.bits == 8 ? c_.rate_of(row.gpu->compute_capability, fallback_rate(row)) : fallback_rate(row),
                       (family != KernelFamily::decode && family != KernelFamily::latent) || row.subset == Subset::cold ? 1.0 : 0.35});
    }
    scale_ = family == KernelFamily::decode ? 0.06 : 0.1;
  }

  void run() {
    if (rows_.empty()) return;
    Eigen::VectorXd x(size_), start(size_), low(size_), high(size_), pull(size_);
    const auto put = [&](int i, double value, const Range& r) {
      x(i) = std::log(std::clamp(value, r.low, r.high));
      start(i) = std::log(r.start), low(i) = std::log(r.low), high(i) = std::log(r.high), pull(i) = r.pull * r.pull;
    };
    for (int b = 0; b < boards_; ++b)
      for (int i = 0; i < board_constants_; ++i) put(b * board_constants_ + i, board(b)[i], board_ranges_[i]);
    for (std::size_t p = 0; p < c_.profiles.size(); ++p)
      for (std::size_t i = 0; i < kProfileConstants; ++i) {
        const bool mine = c_.profiles[p].family == family_;
        put(profile_offset_ + static_cast<int>(p * kProfileConstants + i), mine ? c_.profiles[p].c[i] : 1, mine ? profile_range(family_, i) : Range{1, 1, 1, 1});
      }
    for (std::size_t r = 0; r < c_.rates.size(); ++r) put(rate_offset_ + static_cast<int>(r), c_.rates[r].values, kRateRange);

    const std::vector<GpuConstants> gpus_before = c_.gpus;
    const std::vector<LinkConstants> links_before = c_.links;
    const std::vector<Profile> profiles_before = c_.profiles;
    const std::vector<FittedRate> rates_before = c_.rates;
    const auto cost_of = [&](const Eigen::VectorXd& at) {
      set(at);
      double sum = ((at - start).array().square() * pull.array()).sum();
      for (const Tied& t : rows_) {
        const double r = residual(t, rate_of(t)) / scale_;
        sum += t.weight * t.weight * 2 * (std::sqrt(1 + r * r) - 1);
      }
      return sum;
    };
    double damping = 1e-2, cost = cost_of(x);
    for (int iteration = 0; iteration < 40; ++iteration) {
      Eigen::MatrixXd normal = Eigen::MatrixXd::Zero(size_, size_);
      Eigen::VectorXd gradient = Eigen::VectorXd::Zero(size_);
      set(x);
      for (const Tied& t : rows_) accumulate(t, normal, gradient);
      normal.diagonal() += pull;
      gradient += pull.cwiseProduct(x - start);
      bool better = false;
      double next_cost = cost;
      for (int attempt = 0; attempt < 6 && !better; ++attempt) {
        Eigen::MatrixXd damped = normal;
        damped.diagonal() += damping * (normal.diagonal().array() + 1e-9).matrix();
        Eigen::VectorXd step = damped.ldlt().solve(-gradient);
        step = step.cwiseMax(-1).cwiseMin(1);
        const Eigen::VectorXd next = (x + step).cwiseMax(low).cwiseMin(high);
        next_cost = cost_of(next);
        better = next_cost < cost;
        if (better) {
          x = next;
          damping = std::max(damping / 5, 1e-6);
        } else {
          damping *= 4;
        }
      }
      if (!better || cost - next_cost < 1e-4 * cost) break;
      cost = next_cost;
    }
    set(x);
    std::set<int> boards, profiles, rates;  // what no row reaches stays
    for (const Tied& t : rows_) boards.insert(t.board), profiles.insert(t.profile), rates.insert(t.rate);
    const auto restore = [](auto& now, const auto& before, const std::set<int>& reached) {
      for (std::size_t i = 0; i < now.size(); ++i)
        if (!reached.contains(static_cast<int>(i))) now[i] = before[i];
    };
    if (family_ == KernelFamily::decode) restore(c_.gpus, gpus_before, boards);
    if (family_ == KernelFamily::collective) restore(c_.links, links_before, boards);
    restore(c_.profiles, profiles_before, profiles);
    restore(c_.rates, rates_before, rates);
  }

 private:
  /// The constants at x; derivatives change them in place and put them back.
  void set(const Eigen::VectorXd& x) {
    for (int b = 0; b < boards_; ++b)
      for (int i = 0; i < board_constants_; ++i) board(b)[i] = std::exp(x(b * board_constants_ + i));
    for (std::size_t p = 0; p < c_.profiles.size(); ++p)
      if (c_.profiles[p].family == family_)
        for (std::size_t i = 0; i < kProfileConstants; ++i)
          c_.profiles[p].c[i] = std::exp(x(profile_offset_ + static_cast<int>(p * kProfileConstants + i)));
    for (std::size_t r = 0; r < c_.rates.size(); ++r)
      if (family_ == KernelFamily::decode) c_.rates[r].values = std::exp(x(rate_offset_ + static_cast<int>(r)));
  }
  /// The free constants of a GPU or of its links; none but in the families that fit them.
  double* board(int b) {
    return family_ == KernelFamily::collective ? c_.links[static_cast<std::size_t>(b)].c.data() : c_.gpus[static_cast<std::size_t>(b)].c.data();
  }
  double rate_of(const Tied& t) const { return t.rate >= 0 ? c_.rates[static_cast<std::size_t>(t.rate)].values : t.fallback_rate; }
  double residual(const Tied& t, double rate) const {
    const auto b = static_cast<std::size_t>(t.board);
    const Profile& p = c_.profiles[static_cast<std::size_t>(t.profile)];
    const double seconds = family_ == KernelFamily::collective ? collective_terms(t.machine, c_.links[b], p, std::get<CollectiveWork>(t.row->work)).seconds()
                                                               : seconds_of(t.machine, c_.gpus[b], p, rate, *t.row);
    return std::log(seconds / t.row->seconds);
  }
  void accumulate(const Tied& t, Eigen::MatrixXd& normal, Eigen::VectorXd& gradient) {
    constexpr double kStep = 1e-5;
    const double rate = rate_of(t), r = residual(t, rate);
    const double weight = t.weight * t.weight / (scale_ * scale_) / std::sqrt(1 + (r / scale_) * (r / scale_));
    std::array<std::pair<int, double>, kGpuConstants + kProfileConstants + 1> slope{};
    std::size_t n = 0;
    const auto derive = [&](int index, double& value) {
      const double kept = value;
      value = kept * (1 + kStep);
      slope[n++] = {index, (residual(t, rate) - r) / kStep};
      value = kept;
    };
    for (int i = 0; i < board_constants_; ++i) derive(t.board * board_constants_ + i, board(t.board)[i]);
    for (int i = 0; i < kProfileConstants; ++i)
      derive(profile_offset_ + t.profile * kProfileConstants + i, c_.profiles[static_cast<std::size_t>(t.profile)].c[static_cast<std::size_t>(i)]);
    if (t.rate >= 0) slope[n++] = {rate_offset_ + t.rate, (residual(t, rate * (1 + kStep)) - r) / kStep};
    for (std::size_t i = 0; i < n; ++i) {
      gradient(slope[i].first) += weight * slope[i].second * r;
      for (std::size_t j = 0; j < n; ++j) normal(slope[i].first, slope[j].first) += weight * slope[i].second * slope[j].second;
    }
  }

  Calibration& c_;
  KernelFamily family_;
  int boards_ = 0, board_constants_ = 0;  // free ones
  const Range* board_ranges_ = nullptr;
  int profile_offset_ = 0, rate_offset_ = 0, size_ = 0;
  double scale_ = 0.06;
  std::vector<Tied> rows_;
};

/// Profiles, uses and GPUs as `start` has them, every constant back at its start: a fold must not begin where all rows led.
Calibration forgotten(const Calibration& start) {
  Calibration out = start;
  for (GpuConstants& g : out.gpus)
    for (std::size_t i = 0; i < kGpuConstants; ++i) g.c[i] = kGpuRanges[i].start;
  for (LinkConstants& l : out.links)
    for (std::size_t i = 0; i < kLinkConstants; ++i) l.c[i] = kLinkRanges[i].start;
  for (Profile& p : out.profiles)
    for (std::size_t i = 0; i < kProfileConstants; ++i) p.c[i] = profile_range(p.family, i).start;
  for (FittedRate& r : out.rates) r.values = kRateRange.start;
  return out;
}

void add_missing(Calibration& c, const std::vector<Measurement>& rows) {
  for (const Measurement& row : rows) {
    const std::string& capability = row.gpu->compute_capability;
    if (row.family == KernelFamily::collective) {
      if (c.find_link(row.gpu->slug) < 0) c.links.push_back(c.links_of(*row.gpu));
    } else if (c.find_gpu(row.gpu->slug) < 0) {
      c.gpus.push_back(c.constants_of(*row.gpu));
    }
    if (row.family == KernelFamily::decode && row.bits == 8 &&
        std::none_of(c.rates.begin(), c.rates.end(), [&](const FittedRate& r) { return r.compute_capability == capability; }))
      c.rates.push_back({capability, kRateRange.start});
    if (c.measured_profile(row.family, row.framework, row.kernel, capability, row.bits, row.group) >= 0) continue;
    Profile p{.name = cat(name_of(row.family), ":", row.framework, ":", row.kernel, ":", row.bits), .family = row.family};
    if (c.find_profile(p.name) < 0) {
      for (std::size_t i = 0; i < kProfileConstants; ++i) p.c[i] = profile_range(row.family, i).start;
      c.profiles.push_back(p);
    }
    c.uses.push_back({.family = row.family, .profile = p.name, .framework = row.framework, .kernel = row.kernel, .compute_capability = capability,
                      .bits = row.bits});
  }
}

void fit_all(Calibration& c, const std::vector<Measurement>& rows) {
  for (const KernelFamily family : {KernelFamily::decode, KernelFamily::prefill, KernelFamily::matrix, KernelFamily::collective, KernelFamily::latent}) Fitter(c, rows, family).run();
}

}  // namespace

const char* name_of(LeaveOut leave_out) {
  return leave_out == LeaveOut::shapes ? "shapes" : leave_out == LeaveOut::lengths ? "lengths" : "gpu";
}

Prediction predict(const Calibration& calibration, const Measurement& row) {
  Prediction out;
  const std::string& capability = row.gpu->compute_capability;
  int profile = calibration.measured_profile(row.family, row.framework, row.kernel, capability, row.bits, row.group);
  if (profile < 0) {
    out.evidence = Evidence::extrapolated;
    profile = calibration.deployed_profile(row.family, row.framework, capability, row.bits, row.group,
                                           row.family == KernelFamily::matrix || row.family == KernelFamily::collective ? std::string_view(row.kernel) : std::string_view{});
  }
  const bool collective = row.family == KernelFamily::collective;
  if ((collective ? calibration.find_link(row.gpu->slug) : calibration.find_gpu(row.gpu->slug)) < 0) out.evidence = Evidence::other_gpu;
  const Profile& p = calibration.profiles[static_cast<std::size_t>(profile)];
  const double rate = row.bits == 8 ? calibration.rate_of(capability, fallback_rate(row)) : fallback_rate(row);
  out.seconds = collective ? collective_terms(machine_of(*row.gpu), calibration.links_of(*row.gpu), p, std::get<CollectiveWork>(row.work)).seconds()
                           : seconds_of(machine_of(*row.gpu), calibration.constants_of(*row.gpu), p, rate, row);
  out.profile = p.name;
  return out;
}

std::pair<double, double> interval_factors(const Calibration& calibration, KernelFamily family, Evidence evidence) {
  for (const FittedInterval& i : calibration.intervals)
    if (i.family == family && i.evidence == evidence) return {i.low, i.high};
  return {0.65, 1.5};
}

ErrorFigures error_figures(std::vector<double> errors) {
  ErrorFigures out{.rows = static_cast<std::int64_t>(errors.size())};
  if (errors.empty()) return out;
  std::sort(errors.begin(), errors.end());
  for (const double e : errors) out.mean += e;
  out.mean /= static_cast<double>(errors.size());
  out.p90 = errors[static_cast<std::size_t>(std::ceil(0.9 * static_cast<double>(errors.size()))) - 1];
  out.median = median(std::move(errors));
  return out;
}

Calibration fit(const Calibration& start, const std::vector<Measurement>& rows) {
  Calibration out = start;
  add_missing(out, rows);
  fit_all(out, rows);
  return out;
}

CrossValidation cross_validate(const Calibration& start, const std::vector<Measurement>& rows, LeaveOut leave_out) {
  const auto key = [&](const Measurement& m) {
    return leave_out == LeaveOut::shapes ? cat(name_of(m.family), " ", m.shape) : leave_out == LeaveOut::lengths ? cat(name_of(m.family), " ", m.length) : m.gpu->slug;
  };
  std::map<std::string, std::size_t> fold_of;
  for (const Measurement& m : rows) fold_of.emplace(key(m), 0);
  // Whole shapes and lengths go to a few folds in turn; each GPU is a fold of its own.
  std::size_t folds = leave_out == LeaveOut::gpu ? fold_of.size() : std::min<std::size_t>(6, fold_of.size());
  if (folds < 2) throw InvalidArgument(cat("cross-validation over ", name_of(leave_out), " needs at least two, the rows have ", fold_of.size()));
  std::size_t turn = 0;
  for (auto& [name, fold] : fold_of) fold = turn++ % folds;
  Calibration structure = forgotten(start);
  add_missing(structure, rows);
  CrossValidation out;
  out.predicted.resize(rows.size());
  for (std::size_t fold = 0; fold < folds; ++fold) {
    std::vector<Measurement> kept;
    for (const Measurement& m : rows)
      if (fold_of[key(m)] != fold) kept.push_back(m);
    Calibration c = structure;
    std::set<std::string> trained;
    for (const Measurement& m : kept)
      if (const int p = c.measured_profile(m.family, m.framework, m.kernel, m.gpu->compute_capability, m.bits, m.group); p >= 0)
        trained.insert(c.profiles[static_cast<std::size_t>(p)].name);
    fit_all(c, kept);
    // What this fold never saw may not speak: GPUs without rows take their kin's constants, kernels the nearest other kernel's.
    std::erase_if(c.gpus, [&](const GpuConstants& g) {
      return std::none_of(kept.begin(), kept.end(), [&](const Measurement& m) { return m.gpu->slug == g.gpu && m.family != KernelFamily::collective; });
    });
    std::erase_if(c.links, [&](const LinkConstants& l) {
      return std::none_of(kept.begin(), kept.end(), [&](const Measurement& m) { return m.gpu->slug == l.gpu && m.family == KernelFamily::collective; });
    });
    std::erase_if(c.uses, [&](const ProfileUse& u) { return !trained.contains(u.profile); });
    std::erase_if(c.rates, [&](const FittedRate& r) {
      return std::none_of(kept.begin(), kept.end(), [&](const Measurement& m) { return m.bits == 8 && m.gpu->compute_capability == r.compute_capability; });
    });
    std::vector<double> errors;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (fold_of[key(rows[i])] != fold) continue;
      out.predicted[i] = predict(c, rows[i]).seconds;
      errors.push_back(std::fabs(out.predicted[i] / rows[i].seconds - 1));
    }
    std::string names;
    for (const auto& [name, f] : fold_of)
      if (f == fold && names.size() < 100) names += cat(names.empty() ? "" : "; ", name);
    out.folds.push_back({names, error_figures(std::move(errors))});
  }
  return out;
}

std::vector<FittedInterval> intervals_of(const Calibration& start, const std::vector<Measurement>& rows) {
  std::vector<FittedInterval> out;
  for (const auto& [leave_out, evidence] :
       {std::pair{LeaveOut::shapes, Evidence::fitted}, {LeaveOut::lengths, Evidence::extrapolated}, {LeaveOut::gpu, Evidence::other_gpu}}) {
    const CrossValidation cv = cross_validate(start, rows, leave_out);
    for (const KernelFamily family : {KernelFamily::decode, KernelFamily::prefill, KernelFamily::matrix, KernelFamily::collective, KernelFamily::latent}) {
      std::vector<double> ratios;
      for (std::size_t i = 0; i < rows.size(); ++i)
        if (rows[i].family == family && ((family != KernelFamily::decode && family != KernelFamily::latent) || rows[i].subset == Subset::cold)) ratios.push_back(rows[i].seconds / cv.predicted[i]);
      if (ratios.size() < 20) continue;
      std::sort(ratios.begin(), ratios.end());
      const auto at = [&](double q) { return ratios[static_cast<std::size_t>(q * static_cast<double>(ratios.size() - 1) + 0.5)]; };
      out.push_back({family, evidence, at(0.1), at(0.9), static_cast<std::int64_t>(ratios.size())});
    }
  }
  return out;
}

}  // namespace kvatlas::sim
