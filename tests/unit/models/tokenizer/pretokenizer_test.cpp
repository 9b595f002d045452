#include "models/tokenizer/pretokenizer.hpp"

#include <string>

#include "models/tokenizer/unicode_class.hpp"
#include "models/tokenizer/utf8.hpp"
#include "tests/catch.hpp"

using namespace kvatlas::models;

namespace {

/// The pieces with a bar between them.
std::string cut(Pretokenizer kind, std::string_view text) {
  std::string out, whole;
  for (const std::string_view piece : pretokenize(kind, text)) {
    out += (out.empty() ? "" : "|") + std::string(piece);
    whole += piece;
  }
  CHECK(whole == text);
  return out;
}

}  // namespace

TEST_CASE("GPT-2's expression takes a space with the word behind it and short forms apart", "[unit]") {
  const auto gpt2 = [](std::string_view text) { return cut(Pretokenizer::gpt2, text); };
  CHECK(gpt2("") == "");
  CHECK(gpt2("Hello world") == "Hello| world");
  CHECK(gpt2("I'll say it's 'tis") == "I|'ll| say| it|'s| '|tis");
  CHECK(gpt2("I'LL") == "I|'|LL");
  CHECK(gpt2("we've're'm'd't") == "we|'ve|'re|'m|'d|'t");
  CHECK(gpt2("a1 23 4.5") == "a|1| 23| 4|.|5");
  CHECK(gpt2("x  y") == "x| | y");
  CHECK(gpt2("x   y") == "x|  | y");
  CHECK(gpt2("x  ") == "x|  ");
  CHECK(gpt2("x\n\ny") == "x|\n|\n|y");
  CHECK(gpt2("\n  f(x);") == "\n | f|(|x|);");
  CHECK(gpt2("\t!") == "\t|!");
  CHECK(gpt2(" ") == " ");
  CHECK(gpt2("Größe \xE4\xB8\xAD\xE6\x96\x87") == "Größe| \xE4\xB8\xAD\xE6\x96\x87");
  CHECK(gpt2("a\xC2\xA0" "b") == "a|\xC2\xA0|b");   // a no-break space is no ASCII space
  CHECK(gpt2("a\xFF\xC3" "b") == "a|\xFF\xC3|b");  // broken bytes are neither letters nor spaces
}

TEST_CASE("SmolLM2 cuts every digit out first, so that spaces before one stay together", "[unit]") {
  const auto smollm = [](std::string_view text) { return cut(Pretokenizer::smollm, text); };
  CHECK(smollm("in 2024") == "in| |2|0|2|4");
  CHECK(smollm("a  1") == "a|  |1");
  CHECK(smollm("12ab34") == "1|2|ab|3|4");
  CHECK(smollm("it's 1's") == "it|'s| |1|'s");
  CHECK(smollm("\xD9\xA1\xC2\xBD") == "\xD9\xA1|\xC2\xBD");  // an Arabic digit and the fraction one half
}

TEST_CASE("Llama 3 and Qwen group digits and newlines in their own ways", "[unit]") {
  const auto llama = [](std::string_view text) { return cut(Pretokenizer::llama3, text); };
  const auto qwen = [](std::string_view text) { return cut(Pretokenizer::qwen2, text); };
  CHECK(llama("12345 67") == "123|45| |67");
  CHECK(qwen("123 4") == "1|2|3| |4");
  CHECK(llama("I'LL it'S'") == "I|'LL| it|'S|'");
  CHECK(llama("it'\xC5\xBF" "x") == "it|'\xC5\xBF|x");  // the long s folds to s
  CHECK(llama("(foo) [bar]") == "(foo|)| [|bar|]");
  CHECK(llama("\tfoo") == "\tfoo");
  CHECK(llama("a;\n\n  b") == "a|;\n\n| | b");
  CHECK(llama("a \n \n  b") == "a| \n \n| | b");
  CHECK(llama("a  \n") == "a|  \n");
  CHECK(llama("a  ") == "a|  ");
  CHECK(llama("a\r\nb") == "a|\r\n|b");
  CHECK(llama("x   y") == "x|  | y");
  CHECK(llama(" !?\n x") == " !?\n| x");
  CHECK(llama("\xFFxy") == "\xFFxy");
}

TEST_CASE("pre-tokenizers are found by the names that files use", "[unit]") {
  CHECK(find_pretokenizer("smollm") == Pretokenizer::smollm);
  CHECK(find_pretokenizer("llama-bpe") == Pretokenizer::llama3);
  CHECK(find_pretokenizer("qwen2") == Pretokenizer::qwen2);
  CHECK(find_pretokenizer("gpt-2") == Pretokenizer::gpt2);
  CHECK_FALSE(find_pretokenizer("tekken").has_value());
  CHECK_FALSE(find_pretokenizer("").has_value());
}

TEST_CASE("well-formed characters decode; whatever is broken is one byte", "[unit]") {
  const auto code = [](std::string_view text) { return utf8_char(text, 0).code; };
  CHECK(code("A") == U'A');
  CHECK(code("\xC3\xA9") == U'\u00E9');
  CHECK(code("\xE2\x96\x81") == U'\u2581');
  CHECK(code("\xF0\x9F\x98\x80") == U'\U0001F600');
  CHECK(code("\xF4\x8F\xBF\xBF") == U'\U0010FFFF');
  CHECK(utf8_char("\xF0\x9F\x98\x80", 0).bytes == 4);
  // A continuation alone, overlong forms, a surrogate, beyond the last plane, cut off, interrupted.
  for (const std::string_view broken : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xF0\x80\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
                                        "\xFF", "\xC3", "\xE2\x96", "\xF0\x9F\x98", "\xE2\x28\xA1", "\xC3\x28"}) {
    CAPTURE(broken);
    CHECK(code(broken) == kBrokenByte);
    CHECK(utf8_char(broken, 0).bytes == 1);
  }
}

TEST_CASE("classes of characters follow Unicode at the edges of their ranges", "[unit]") {
  for (const char32_t letter : {U'A', U'z', U'\u00AA', U'\u00B5', U'\u00FF', U'\u0294', U'\u4E00', U'\uAC00', U'\uFB00', U'\U00020000'})
    CHECK(unicode_class(letter) == UnicodeClass::letter);
  for (const char32_t number : {U'0', U'9', U'\u00B2', U'\u00BD', U'\u0660', U'\u2160', U'\U0001D7FF'}) CHECK(unicode_class(number) == UnicodeClass::number);
  for (const char32_t space : {U'\t', U'\r', U' ', U'\u0085', U'\u00A0', U'\u1680', U'\u2003', U'\u2028', U'\u3000'})
    CHECK(unicode_class(space) == UnicodeClass::space);
  for (const char32_t other : {U'\0', U'\u001C', U'_', U'\u00D7', U'\u0301', U'\u200B', U'\u2581', U'\U0001F600', U'\U0010FFFF', char32_t{0x110000}, kBrokenByte})
    CHECK(unicode_class(other) == UnicodeClass::other);
  std::uint32_t past = 0;
  for (const UnicodeRange& range : unicode_ranges()) {
    CHECK(range.first >= past);
    CHECK(range.last >= range.first);
    past = range.last + 1;
  }
}
