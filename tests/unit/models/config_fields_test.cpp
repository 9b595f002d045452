#include "models/config_fields.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

namespace kvatlas::models {
namespace {

using nlohmann::json;

template <class Call>
std::string said(const Call& call) {
  try {
    call();
  } catch (const InvalidArgument& e) {
    return e.what();
  }
  return "accepted";
}

TEST_CASE("fields that nobody read are named, nested ones behind their object", "[unit]") {
  const json object{{"a", 1}, {"b", {{"c", 2}, {"d", 3}}}, {"e", nullptr}, {"f", {{"g", 1}}}, {"h", {{"i", 1}}}};
  ReadLog log;
  Fields fields(object, log);
  CHECK(fields.unread() == std::vector<std::string>{"a", "b", "f", "h"});
  CHECK(fields.integer("a", 0, 9) == 1);
  CHECK(fields.object("b")->integer("d", 0, 9) == 3);
  fields.ignore("f");
  CHECK(fields.object("h").has_value());
  fields.ignore("h");
  CHECK(fields.unread() == std::vector<std::string>{"b.c"});
}

TEST_CASE("absent and null fields are absent", "[unit]") {
  const json object{{"a", nullptr}};
  ReadLog log;
  Fields fields(object, log);
  CHECK_FALSE(fields.has("a"));
  CHECK_FALSE(fields.integer("a", 0, 1).has_value());
  CHECK_FALSE(fields.text("b").has_value());
  CHECK(fields.present({"a", "b"}).empty());
  CHECK(said([&] { fields.required({"b", "a"}, 1, 5); }) == "b is missing, must be an integer from 1 to 5");
}

TEST_CASE("the first spelling present wins, and every spelling is checked", "[unit]") {
  const json object{{"n_layer", 3}, {"layers", 4}, {"odd", "x"}};
  ReadLog log;
  Fields fields(object, log);
  CHECK(fields.required({"num_layers", "n_layer", "layers"}, 1, 9) == 3);
  CHECK(said([&] { fields.any({"n_layer", "odd"}, 1, 9); }) == "odd is \"x\", must be an integer from 1 to 9");
}

TEST_CASE("a value of the wrong type is shown shortly", "[unit]") {
  const json object{{"long", std::string(200, 'x')},
                    {"list", json::array({1, 2, 3, 4, 5, 6, 7, 8, 9})},
                    {"object", {{"a", 1}}},
                    {"list_of_text", {"a", 1}},
                    {"infinite", 1e300}};
  ReadLog log;
  Fields fields(object, log, "outer");
  CHECK(said([&] { fields.integer("long", 0, 1); }) ==
        cat("outer.long is \"", std::string(56, 'x'), "..., must be an integer from 0 to 1"));
  CHECK(said([&] { fields.boolean("list"); }) == "outer.list is an array of 9 entries, must be true or false");
  CHECK(said([&] { fields.text("object"); }) == "outer.object is an object, must be a string");
  CHECK(said([&] { fields.texts("list_of_text"); }) == "outer.list_of_text is [\"a\",1], must be an array of strings");
  CHECK(said([&] { fields.object("long"); }) ==
        cat("outer.long is \"", std::string(56, 'x'), "..., must be a JSON object"));
  CHECK(said([&] { fields.number("infinite", 0.0, 1.0); }) == "outer.infinite is 1e+300, must be a number from 0 to 1");
}

}  // namespace
}  // namespace kvatlas::models
