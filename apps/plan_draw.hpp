// apps/plan_draw.hpp: a plan as a picture: its trees over the topology's links.
#pragma once

#include <string>

#include "collectives/plan.hpp"

namespace coppice::apps {

// One SVG document. Hosts on a circle, boxes next to one another, switches inside; grey lines are links, as wide as
// their capacity; each tree has one colour, its edges as wide as its rate, side by side where trees share a link, with
// an arrow the way it broadcasts. Beyond 24 trees the widest are drawn and the legend says how many are not.
std::string draw(const collectives::Plan& plan, const collectives::Topology& topology);

}  // namespace coppice::apps
