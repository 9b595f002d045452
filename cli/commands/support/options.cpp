#include "cli/commands/support/options.hpp"

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <cmath>
#include <ostream>
#include <sstream>

#include "reference/params.hpp"

namespace kvatlas::cli {

namespace po = boost::program_options;

namespace {

using Kind = Option::Kind;

std::vector<Option> with_common(const Usage& usage) {
  std::vector<Option> options = usage.options;
  options.push_back(Option::flag("json", "one JSON document on standard output, nothing else there"));
  options.push_back(Option::flag("help", "this text"));
  return options;
}

/// Bounds as users write sizes: 1M, not 1048576.
std::string spell_size(double bound) {
  const auto n = static_cast<std::int64_t>(bound);
  if (n >= (1 << 20) && n % (1 << 20) == 0) return cat(n >> 20, "M");
  if (n >= (1 << 10) && n % (1 << 10) == 0) return cat(n >> 10, "K");
  return cat(n);
}

std::string allowed(const Option& o) {
  switch (o.kind) {
    case Kind::size: return cat("a size from ", spell_size(o.min), " to ", spell_size(o.max));
    case Kind::integer: return cat("a whole number from ", static_cast<std::int64_t>(o.min), " to ", static_cast<std::int64_t>(o.max));
    case Kind::number: return cat("a number from ", o.min, " to ", o.max);
    case Kind::choice: {
      std::string words;
      for (const std::string_view c : o.choices) words += cat(words.empty() ? "" : ", ", c);
      return cat("one of ", words);
    }
    default: return "";
  }
}

std::optional<double> number_of(const Option& o, const std::string& text) {
  if (o.kind == Kind::size) {
    const auto n = parse_size(text);
    return n ? std::optional(static_cast<double>(*n)) : std::nullopt;
  }
  if (o.kind == Kind::integer) {  // digits alone: neither 1e3 nor 4.0 nor 4K
    std::int64_t n = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
    return error == std::errc{} && end == text.data() + text.size() ? std::optional(static_cast<double>(n)) : std::nullopt;
  }
  double v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || !std::isfinite(v)) return std::nullopt;
  return v;
}

void check(const Option& o, const std::string& text) {
  bool good = true;
  if (o.kind == Kind::size || o.kind == Kind::integer || o.kind == Kind::number) {
    const auto v = number_of(o, text);
    good = v && *v >= o.min && *v <= o.max;
  } else if (o.kind == Kind::choice) {
    good = std::find(o.choices.begin(), o.choices.end(), text) != o.choices.end();
  } else if (text.empty()) {
    throw UsageError(cat("--", o.name, " is empty, write --", o.name, " ", o.value));
  }
  if (!good) throw UsageError(cat("--", o.name, " is \"", text, "\", must be ", allowed(o)));
}

/// Boost's description of the options: what it parses and what the help prints.
po::options_description describe(const std::vector<Option>& options) {
  constexpr unsigned kWidth = 100;
  po::options_description all("options", kWidth, kWidth / 2 + 8);
  for (const Option& o : options) {
    std::string help = o.help;
    const std::string range = o.kind == Kind::choice && help.find(o.choices[0]) != std::string::npos ? "" : allowed(o);
    if (!range.empty()) help += cat("; ", range);
    if (o.required) help += " (required)";
    if (o.fallback != nullptr) help += cat(" (default ", o.fallback, ")");
    if (o.kind == Kind::flag) {
      all.add_options()(o.name, help.c_str());
    } else {
      all.add_options()(o.name, po::value<std::vector<std::string>>()->value_name(o.value), help.c_str());
    }
  }
  return all;
}

std::string_view bare(std::string_view option) {
  while (option.starts_with('-')) option.remove_prefix(1);
  return option.substr(0, option.find('='));
}

}  // namespace

const std::string& Parsed::text(std::string_view name) const {
  const auto found = values_.find(std::string(name));
  KV_ASSERT(found != values_.end(), "a command asks only for options that are given or have a default");
  return found->second.back();
}

std::vector<std::string> Parsed::list(std::string_view name) const {
  const auto found = values_.find(std::string(name));
  return found == values_.end() ? std::vector<std::string>{} : found->second;
}

std::int64_t Parsed::integer(std::string_view name) const {
  const auto n = parse_size(text(name));
  KV_ASSERT(n.has_value(), "the door has checked every number");
  return *n;
}

double Parsed::number(std::string_view name) const {
  const std::string& t = text(name);
  double v = 0;
  std::from_chars(t.data(), t.data() + t.size(), v);
  return v;
}

std::string help_text(const Usage& usage) {
  std::ostringstream out;
  std::string summary;
  for (const Command& c : all_commands())
    if (std::string_view(c.name) == usage.command) summary = c.summary;
  out << "kvatlas " << usage.command << ": " << summary << "\n\nusage: kvatlas " << usage.command
      << (usage.positional[0] != '\0' ? " " : "") << usage.positional << " [options]\n\n"
      << describe(with_common(usage));
  if (usage.note[0] != '\0') out << "\n" << usage.note << "\n";
  out << "\nexample: " << usage.example << "\n";
  return out.str();
}

std::optional<Parsed> parse(const Usage& usage, const Arguments& args, const Streams& io) {
  if (std::find(args.begin(), args.end(), "--help") != args.end() || std::find(args.begin(), args.end(), "-h") != args.end()) {
    io.out << help_text(usage);
    return std::nullopt;
  }
  const std::vector<Option> options = with_common(usage);
  po::options_description visible = describe(options), all;
  all.add(visible).add_options()("positional", po::value<std::vector<std::string>>());
  po::positional_options_description positional;
  positional.add("positional", -1);
  Parsed parsed;
  try {
    namespace style = po::command_line_style;
    const auto strict = style::allow_long | style::long_allow_adjacent | style::long_allow_next;
    const po::parsed_options found = po::command_line_parser(args).options(all).positional(positional).style(strict).run();
    for (const auto& option : found.options) {
      if (option.string_key == "positional") {
        parsed.positional_.insert(parsed.positional_.end(), option.value.begin(), option.value.end());
        continue;
      }
      const auto& row = *std::find_if(options.begin(), options.end(), [&](const Option& o) { return option.string_key == o.name; });
      auto& values = parsed.values_[option.string_key];
      if (!values.empty() && row.kind != Kind::list) throw UsageError(cat("--", row.name, " is given twice"));
      if (row.kind == Kind::flag) {
        values.emplace_back("true");
        continue;
      }
      for (const std::string& value : option.value) {
        check(row, value);
        values.push_back(value);
      }
    }
  } catch (const po::unknown_option& e) {
    std::vector<std::string> spelled;
    for (const Option& o : options) spelled.push_back(cat("--", o.name));
    const std::vector<std::string_view> names(spelled.begin(), spelled.end());
    throw UsageError(unknown_name("option", cat("--", bare(e.get_option_name())), names));
  } catch (const po::invalid_command_line_syntax& e) {
    const std::string name(bare(e.get_option_name()));
    const auto row = std::find_if(options.begin(), options.end(), [&](const Option& o) { return name == o.name; });
    if (row != options.end() && row->kind == Kind::flag) throw UsageError(cat("--", name, " takes no value"));
    throw UsageError(cat("--", name, " lacks its value, write --", name, " ", row == options.end() ? "VALUE" : row->value));
  } catch (const po::error& e) {
    throw UsageError(e.what());
  }
  const auto n = static_cast<int>(parsed.positional_.size());
  if (n < usage.least) throw UsageError(cat("lacks ", usage.positional, "; usage: kvatlas ", usage.command, " ", usage.positional, " [options]"));
  if (n > usage.most)
    throw UsageError(cat("\"", parsed.positional_[static_cast<std::size_t>(usage.most)], "\" is one argument too many; usage: kvatlas ",
                         usage.command, usage.positional[0] != '\0' ? " " : "", usage.positional, " [options]"));
  for (const auto& [name, values] : parsed.values_) parsed.given_.insert(name);
  for (const Option& o : options) {
    if (parsed.has(o.name)) continue;
    if (o.required) throw UsageError(cat("--", o.name, " ", o.value, " is required"));
    if (o.fallback != nullptr) parsed.values_[o.name] = {o.fallback};
  }
  return parsed;
}

std::vector<Option> join(std::initializer_list<std::vector<Option>> groups) {
  std::vector<Option> all;
  for (const auto& g : groups) all.insert(all.end(), g.begin(), g.end());
  return all;
}

}  // namespace kvatlas::cli
