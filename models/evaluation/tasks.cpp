#include "models/evaluation/tasks.hpp"

#include <algorithm>
#include <array>

#include "core/errors.hpp"
#include "core/philox.hpp"

namespace kvatlas::models {

namespace {

constexpr std::array<std::string_view, 5> kTasks{"passkey", "multi_needle", "kv_lookup", "copy", "few_shot"};
constexpr std::array<std::string_view, 24> kWords{
    "anchor", "basket", "bridge", "button", "candle", "castle", "forest", "garden", "harbor", "kettle", "ladder", "lantern",
    "letter", "market", "meadow", "mirror", "pepper", "pillow", "river", "saddle", "silver", "stone", "violin", "window"};
constexpr double kLatest = 0.7;  // what an answer needs lies in this share of the context
constexpr std::int64_t kPairBytes = 12;  // of one record of kv_lookup

struct Record {
  std::string question;  // "[garden: "
  std::string answer;    // "48213"
  std::string text() const { return cat(question, answer, kRecordEnd); }
};

/// Draws in a stated order: each call takes the next word of the trial's own stream.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint32_t task, std::uint32_t trial) : stream_{.seed = seed, .layer = 0x7A5C, .head = task, .step = trial} {}
  std::int64_t below(std::int64_t n) { return random_below(stream_, next_++, static_cast<std::uint32_t>(n)); }
  double uniform() { return static_cast<double>(random_uniform(stream_, next_++)); }
  std::string digits(int count) {
    std::string s;
    for (int i = 0; i < count; ++i) s += static_cast<char>('0' + below(10));
    return s;
  }
  std::string letters(std::int64_t count, bool distinct = false) {
    std::string s;
    while (static_cast<std::int64_t>(s.size()) < count) {
      const char c = static_cast<char>('a' + below(26));
      if (!distinct || s.find(c) == std::string::npos) s += c;
    }
    return s;
  }

 private:
  RandomStream stream_;
  std::uint64_t next_ = 0;
};

std::string apply_rule(std::int64_t rule, const std::string& s) {
  std::string out;
  for (const char c : s) {
    if (rule == 0) out += static_cast<char>(c - 'a' + 'A');
    if (rule == 1) out.insert(out.begin(), c);
    if (rule == 2) out += {c, c};
    if (rule == 3) out += c == 'z' ? 'a' : static_cast<char>(c + 1);
  }
  return out;
}

/// Keys of three letters, no two alike.
std::vector<std::string> keys(Draws& draws, std::int64_t count, bool distinct_letters) {
  std::vector<std::string> made;
  while (static_cast<std::int64_t>(made.size()) < count) {
    std::string key = draws.letters(3, distinct_letters);
    if (std::ranges::find(made, key) == made.end()) made.push_back(std::move(key));
  }
  return made;
}

std::vector<Record> make_records(std::string_view task, Draws& draws, std::int64_t size) {
  std::vector<Record> records;
  if (task == "passkey") {
    records.push_back({"[pass key: ", draws.digits(5)});
  } else if (task == "multi_needle") {
    std::vector<std::string_view> words(kWords.begin(), kWords.end());
    for (int i = 0; i < 4; ++i) {
      const std::int64_t at = draws.below(static_cast<std::int64_t>(words.size()));
      records.push_back({cat("[", words[static_cast<std::size_t>(at)], ": "), draws.digits(5)});
      words.erase(words.begin() + at);
    }
  } else if (task == "kv_lookup") {
    const auto room = static_cast<std::int64_t>(kLatest * static_cast<double>(size)) / kPairBytes;
    for (const std::string& key : keys(draws, std::clamp<std::int64_t>(room, 4, 4096), false))
      records.push_back({cat("[", key, ": "), draws.digits(4)});
  } else if (task == "copy") {
    records.push_back({"[copy: ", draws.letters(16 + draws.below(17))});
  } else {
    const std::int64_t rule = draws.below(4);
    for (const std::string& key : keys(draws, 10, true)) records.push_back({cat("[", key, " > "), apply_rule(rule, key)});
  }
  return records;
}

/// `size` bytes of prose, at most three fewer, from the start of a word to a space; no character of UTF-8 is cut.
std::string cut_filler(std::string_view text, Draws& draws, std::int64_t size) {
  std::string out;
  const auto n = static_cast<std::int64_t>(text.size());
  while (size - static_cast<std::int64_t>(out.size()) > 4) {
    const auto from = static_cast<std::size_t>(n > size + 64 ? draws.below(n - size - 64) : 0);
    std::size_t at = text.find(' ', from) + 1;  // npos + 1 is 0: a text without spaces is taken from its start
    if (at == text.size()) at = 0;              // no word follows its last space
    std::size_t count = std::min(static_cast<std::size_t>(size) - out.size() - 1, text.size() - at);
    for (int back = 0; back < 3 && at + count < text.size() && (static_cast<unsigned char>(text[at + count]) & 0xC0) == 0x80; ++back) --count;
    out += text.substr(at, count);
    if (out.empty() || out.back() != ' ') out += ' ';
  }
  for (char& c : out) c = c == '[' ? '(' : c == ']' ? ')' : c == '\n' ? ' ' : c;
  return out;
}

/// Puts each record at the word boundary that follows its depth, a share of the filler.
std::string place(const std::string& filler, const std::vector<Record>& records, const std::vector<double>& depths) {
  std::string out;
  std::size_t last = 0;
  for (std::size_t i = 0; i < records.size(); ++i) {
    const auto depth = static_cast<std::size_t>(depths[i] * static_cast<double>(filler.size()));
    const std::size_t at = std::min(filler.find(' ', std::max(last, std::min(depth, filler.size() - 1))) + 1, filler.size());
    out += filler.substr(last, at - last);
    out += records[i].text();
    last = at;
  }
  return out + filler.substr(last);
}

}  // namespace

std::span<const std::string_view> all_tasks() { return kTasks; }

TaskCase make_case(std::string_view task, std::uint64_t seed, std::uint32_t trial, std::string_view text, std::int64_t size) {
  const auto which = std::ranges::find(kTasks, task);
  if (which == kTasks.end()) throw InvalidArgument(unknown_name("task", task, kTasks));
  if (text.empty()) throw InvalidArgument("filler is empty, must be prose");
  Draws draws(seed, static_cast<std::uint32_t>(which - kTasks.begin()), trial);
  std::vector<Record> records = make_records(task, draws, size);
  const bool few_shot = task == "few_shot", at_start = few_shot || task == "kv_lookup";
  std::vector<Record> asked = records;
  if (few_shot) {  // the last two keys are asked, never stated
    asked.assign(records.end() - 2, records.end());
    records.resize(records.size() - 2);
  }
  std::int64_t room = size - static_cast<std::int64_t>(asked.front().question.size());
  std::string stated;
  for (const Record& r : records) stated += r.text();
  room -= static_cast<std::int64_t>(stated.size());
  if (room < 16) throw InvalidArgument(cat("context is about ", size, " bytes, must leave 16 bytes of filler beside the records of ", task, " (", stated.size(), ")"));
  const std::string filler = cut_filler(text, draws, room);
  std::vector<double> depths;
  for (std::size_t i = 0; i < records.size(); ++i) depths.push_back(draws.uniform() * kLatest);
  std::ranges::sort(depths);
  const auto first = static_cast<std::size_t>(draws.below(static_cast<std::int64_t>(asked.size())));
  Record second;
  if (asked.size() > 1) second = asked[(first + 1 + static_cast<std::size_t>(draws.below(static_cast<std::int64_t>(asked.size()) - 1))) % asked.size()];
  return {.context = at_start ? stated + filler : place(filler, records, depths), .question = asked[first].question,
          .answer = asked[first].answer, .second_question = second.question, .second_answer = second.answer};
}

}  // namespace kvatlas::models
