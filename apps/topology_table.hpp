// apps/topology_table.hpp: a topology and what was measured for it, for a person.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "runtime/machine.hpp"

namespace coppice::apps {

// survey: as collectives::to_json of a SurveyReport.
std::string survey_table(const nlohmann::json& survey);

std::string machine_table(const runtime::MachineFacts& facts, const collectives::Topology& topology);

}  // namespace coppice::apps
