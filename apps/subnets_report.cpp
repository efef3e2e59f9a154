// What a decomposition is told as: JSON, a table, and a page with the channels that the groups share.
#include <algorithm>
#include <cmath>
#include <sstream>

#include "apps/subnets.hpp"
#include "apps/table.hpp"

namespace coppice::apps {
namespace {

double share(std::int64_t part, std::int64_t whole) { return static_cast<double>(part) / static_cast<double>(whole); }

std::string names_of(const SubnetsReport& report, const std::vector<int>& classes) {
  if (classes.size() == report.class_names.size()) return "all " + std::to_string(classes.size());
  std::string text;
  for (const int c : classes) text += (text.empty() ? "" : ", ") + report.class_names[static_cast<std::size_t>(c)];
  return text;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text)
    out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : c == '"' ? "&quot;" : std::string(1, c);
  return out;
}

// Of the channels that either keeps, those that both do.
double overlap(const SubnetsReport& report, std::size_t a, std::size_t b) {
  std::int64_t both = 0, either = 0;
  for (const auto& layer : report.layers)
    for (std::size_t c = 0; c < layer.kept[a].size(); ++c) {
      both += layer.kept[a][c] && layer.kept[b][c];
      either += layer.kept[a][c] || layer.kept[b][c];
    }
  return either ? share(both, either) : 1;
}

// A row a sub-net, a cell a channel of the base; filled where it was kept.
std::string layer_svg(const SubnetsReport::Layer& layer) {
  constexpr int kCell = 6;
  const auto width = layer.kept.empty() ? 0 : std::ssize(layer.kept.front());
  std::ostringstream svg;
  svg << "<svg width=\"" << width * kCell << "\" height=\"" << std::ssize(layer.kept) * kCell << "\" role=\"img\" aria-label=\""
      << escaped(layer.name) << "\">";
  for (std::size_t net = 0; net < layer.kept.size(); ++net) {
    std::string path;  // one path a row: runs of kept channels
    for (std::int64_t c = 0; c < width;) {
      const auto begin = c;
      while (c < width && layer.kept[net][static_cast<std::size_t>(c)]) ++c;
      if (c > begin)
        path += "M" + std::to_string(begin * kCell) + " " + std::to_string(net * kCell) + "h" +
                std::to_string((c - begin) * kCell - 1) + "v" + std::to_string(kCell - 1) + "h-" +
                std::to_string((c - begin) * kCell - 1) + "z";
      if (c == begin) ++c;
    }
    svg << "<path d=\"" << path << "\"/>";
  }
  svg << "</svg>";
  return svg.str();
}

std::string overlap_table(const SubnetsReport& report) {
  const auto count = report.groups.size();
  std::ostringstream out;
  out << "<table><tr><th></th>";
  for (std::size_t i = 0; i < count; ++i) out << "<th>" << i << "</th>";
  out << "</tr>";
  for (std::size_t a = 0; a < count; ++a) {
    out << "<tr><th>" << a << " " << escaped(names_of(report, report.groups[a])) << "</th>";
    for (std::size_t b = 0; b < count; ++b) {
      const double value = overlap(report, a, b);
      out << "<td style=\"background:rgba(31,111,84," << fixed(value, 2) << ")\">" << fixed(value, 2) << "</td>";
    }
    out << "</tr>";
  }
  out << "</table>";
  return out.str();
}

std::vector<std::vector<std::string>> rows_of(const SubnetsReport& report) {
  std::vector<std::vector<std::string>> rows{
      {"net", "classes", "multiply-adds", "of base", "parameters", "latency us", "of base", "accuracy on its classes %"}};
  rows.push_back({"base", names_of(report, std::vector<int>(report.class_names.size())), std::to_string(report.base_multiply_adds),
                  "1", std::to_string(report.base_parameters), fixed(report.base_latency_us, 1), "1",
                  fixed(report.base_held_out, 2)});
  for (const auto& row : report.rows)
    rows.push_back({row.name, names_of(report, row.classes), std::to_string(row.multiply_adds),
                    fixed(share(row.multiply_adds, report.base_multiply_adds), 3), std::to_string(row.parameters),
                    fixed(row.latency_us, 1), fixed(row.latency_us / report.base_latency_us, 3), fixed(row.accuracy, 2)});
  return rows;
}

std::string sums(const SubnetsReport& report) {
  return "held-out images: base " + fixed(report.base_held_out, 2) + " %, the sub-nets together " +
         fixed(report.combined_held_out, 2) + " %, one whole net of their size " + fixed(report.control_held_out, 2) + " %";
}

}  // namespace

nlohmann::json to_json(const SubnetsReport& report) {
  nlohmann::json json = {{"model", report.model},
                         {"data", report.data},
                         {"groups", report.groups},
                         {"flops", report.flops},
                         {"base", {{"held_out", report.base_held_out},
                                   {"multiply_adds", report.base_multiply_adds},
                                   {"parameters", report.base_parameters},
                                   {"latency_us", report.base_latency_us}}},
                         {"combined_held_out", report.combined_held_out},
                         {"control_held_out", report.control_held_out},
                         {"seconds", report.seconds},
                         {"nets", nlohmann::json::array()}};
  for (const auto& row : report.rows)
    json["nets"].push_back({{"name", row.name},
                            {"classes", row.classes},
                            {"multiply_adds", row.multiply_adds},
                            {"parameters", row.parameters},
                            {"latency_us", row.latency_us},
                            {"accuracy", std::isnan(row.accuracy) ? nlohmann::json() : nlohmann::json(row.accuracy)}});
  return json;
}

std::string to_text(const SubnetsReport& report) { return table(rows_of(report)) + "\n" + sums(report) + "\n"; }

std::string to_html(const SubnetsReport& report) {
  std::ostringstream out;
  out << "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">"
         "<title>Decomposition of "
      << escaped(report.model)
      << "</title><style>body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1d2521}"
         "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .6rem;border-bottom:1px solid #d5ddd8;"
         "text-align:right;font-variant-numeric:tabular-nums}td:nth-child(-n+2),th:first-child{text-align:left}"
         "svg{display:block;background:#eef2f0;fill:#1f6f54}figure{margin:1rem 0;overflow-x:auto}"
         "figcaption{font-size:.85rem;color:#56615b}</style><h1>"
      << escaped(report.model) << " as " << report.groups.size() << " sub-nets</h1><p>" << escaped(sums(report)) << ".</p><table>";
  bool head = true;
  for (const auto& row : rows_of(report)) {
    out << "<tr>";
    for (const auto& cell : row) out << (head ? "<th>" : "<td>") << escaped(cell) << (head ? "</th>" : "</td>");
    out << "</tr>";
    head = false;
  }
  out << "</table><h2>Channels that the groups share</h2><p>Of the channels that either of two sub-nets keeps, the share "
         "that both keep.</p>"
      << overlap_table(report)
      << "<h2>Channels of the base that each sub-net keeps</h2><p>A row for each sub-net, from 0 down; a cell for each "
         "channel of the base.</p>";
  for (const auto& layer : report.layers)
    out << "<figure>" << layer_svg(layer) << "<figcaption>" << escaped(layer.name) << "</figcaption></figure>";
  out << "</html>\n";
  return out.str();
}

}  // namespace coppice::apps
