// apps/command.hpp: what every subcommand shares: where results go and how faults end the program.
//
// A person's text and progress go to standard error; results go to standard output, as text or, with --json, as exactly
// one JSON document. Exit status: 0 success, 2 bad usage or bad input, 1 a failure of the work itself.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/error.hpp"

namespace coppice::apps {

struct Shell {
  bool json = false;
  std::string program;                               // argv[0], to start more of ourselves
  std::vector<std::string> arguments;                // what followed it
  std::string command;                               // the subcommand's name, for error lines
  std::function<runtime::Expected<void>()> run;      // set by the subcommand that was named

  void print(const nlohmann::json& document) const;  // the one document of --json
};

// Adds a subcommand with --json and an example under its help; `run` is what it does.
CLI::App* add_command(CLI::App& parent, Shell& shell, const std::string& name, const std::string& description,
                      const std::string& example, std::function<runtime::Expected<void>()> run);

// "64M" of a flag: K, M and G are 2¹⁰, 2²⁰ and 2³⁰. Errors: bad_input, naming the flag.
runtime::Expected<std::int64_t> byte_count(const std::string& flag, const std::string& text);

// One file a command; main.cpp calls each.
void add_keys(CLI::App& app, Shell& shell);
void add_node(CLI::App& app, Shell& shell);
void add_launch(CLI::App& app, Shell& shell);
void add_infer(CLI::App& app, Shell& shell);
void add_status(CLI::App& app, Shell& shell);
void add_bench(CLI::App& app, Shell& shell);
void add_bench_class_parallel(CLI::App& bench, Shell& shell);
void add_bench_collective(CLI::App& bench, Shell& shell);
void add_demo(CLI::App& app, Shell& shell);
void add_run(CLI::App& app, Shell& shell);
void add_evaluate(CLI::App& app, Shell& shell);
void add_decompose(CLI::App& app, Shell& shell);
void add_plan(CLI::App& app, Shell& shell);
void add_topology(CLI::App& app, Shell& shell);
void add_train(CLI::App& app, Shell& shell);
void add_data(CLI::App& app, Shell& shell);

}  // namespace coppice::apps
