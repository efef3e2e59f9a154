// The coppice program: names every command, then runs the one that was asked for.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <cstdio>

#include "apps/command.hpp"
#include "runtime/cluster.hpp"

namespace coppice::apps {

void Shell::print(const nlohmann::json& document) const {
  std::fputs((document.dump(1) + "\n").c_str(), stdout);
  std::fflush(stdout);
}

CLI::App* add_command(CLI::App& parent, Shell& shell, const std::string& name, const std::string& description,
                      const std::string& example, std::function<runtime::Expected<void>()> run) {
  auto* command = parent.add_subcommand(name, description);
  command->add_flag("--json", shell.json, "one JSON document on standard output");
  command->footer("Example:\n  " + example);
  const auto whole = parent.get_name().empty() ? name : parent.get_name() + " " + name;
  command->callback([&shell, whole, run = std::move(run)] {
    shell.command = whole;
    shell.run = run;
  });
  return command;
}

runtime::Expected<std::int64_t> byte_count(const std::string& flag, const std::string& text) {
  std::string digits = text;
  std::int64_t unit = 1;
  const std::string units = "KMG";
  if (!digits.empty() && units.find(digits.back()) != std::string::npos) {
    unit = std::int64_t{1} << (10 * (static_cast<int>(units.find(digits.back())) + 1));
    digits.pop_back();
  }
  const bool plain =
      !digits.empty() && digits.size() <= 9 && digits.find_first_not_of("0123456789") == std::string::npos;
  if (!plain)
    return runtime::bad_input(runtime::one_line(flag + " " + text + ": a number like 65536, 64K, 64M or 2G is needed"));
  return std::stoll(digits) * unit;
}

namespace {

// CLI11's ranges let what is no number through: every comparison with it is false.
void refuse_nan(const CLI::App& app) {
  for (const auto* option : app.get_options())
    for (const auto& text : option->results()) {
      double value = 0;
      if (option->get_type_name().starts_with("FLOAT") && CLI::detail::lexical_cast(text, value) && std::isnan(value))
        throw CLI::ValidationError(option->get_name(), text + " is no number");
    }
  for (const auto* command : app.get_subcommands()) refuse_nan(*command);
}

}  // namespace
}  // namespace coppice::apps

int main(int argc, char** argv) {
  using namespace coppice;
  spdlog::set_default_logger(spdlog::stderr_color_mt("coppice"));
  spdlog::set_pattern("%H:%M:%S.%e %^%l%$ %v");

  apps::Shell shell;
  shell.program = argv[0];
  shell.arguments.assign(argv + 1, argv + argc);
  CLI::App app{"Coppice: one trained classifier as small nets on many machines; any k of n answers are enough."};
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& fault) {
    return "coppice: " + runtime::one_line(fault.what()) + "; --help says more\n";
  });
  app.set_version_flag("--version", COPPICE_VERSION);
  apps::add_demo(app, shell);
  apps::add_train(app, shell);
  apps::add_decompose(app, shell);
  apps::add_evaluate(app, shell);
  apps::add_data(app, shell);
  apps::add_run(app, shell);
  apps::add_keys(app, shell);
  apps::add_node(app, shell);
  apps::add_launch(app, shell);
  apps::add_infer(app, shell);
  apps::add_status(app, shell);
  apps::add_plan(app, shell);
  apps::add_topology(app, shell);
  apps::add_bench(app, shell);

  try {
    app.parse(argc, argv);
    apps::refuse_nan(app);
  } catch (const CLI::ParseError& fault) {
    const bool asked_for_text = fault.get_exit_code() == 0;  // --help, --version
    return app.exit(fault) == 0 && asked_for_text ? 0 : 2;
  }
  try {
    const auto outcome = shell.run();
    if (outcome) return 0;
    std::fprintf(stderr, "coppice %s: %s\n", shell.command.c_str(), outcome.error().what.c_str());
    return outcome.error().code == runtime::ErrorCode::bad_input ? 2 : 1;
  } catch (const std::exception& fault) {
    std::fprintf(stderr, "coppice %s: %s\n", shell.command.c_str(), fault.what());
    return 1;
  }
}
