#include "compiler/tune/Case.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace normforge::tune {

std::string Case::title() const {
  std::string text = fmt::format("{} {}", spec.name, toString(phase));
  if (spec.layout.text.find('_') == std::string::npos)
    text += " " + spec.layout.text;
  for (const auto &[name, value] : sizes)
    text += fmt::format(" {}={}", name, value);
  if (cache == CacheState::Cold)
    text += " cold";
  return text;
}

std::vector<int64_t> orderedSizes(const Operator &op, const oracle::Sizes &sizes) {
  std::vector<int64_t> values;
  for (const std::string &name : op.sizes)
    values.push_back(sizes.at(name));
  return values;
}

void describe(ResultRecord &record, const Case &of) {
  record.name = of.spec.name;
  record.layout = of.spec.layout.text;
  record.count = of.spec.count;
  const char *data = isBackward(of.phase) ? "dx" : "x";
  record.shape = fmt::format("{}", fmt::join(oracle::argumentShape(of.spec, data, of.sizes), "x"));
  record.elements = of.op.elements.evaluate(of.sizeValues).value_or(0);
  record.bytes = of.op.minimumBytes().evaluate(of.sizeValues).value_or(0);
}

void complete(Case &of, const TargetDescription &target) {
  of.op = makeOperator(of.spec, of.phase);
  of.sizeValues = orderedSizes(of.op, of.sizes);
  for (const ScheduleVariant &variant : selectSchedules(of.op, target))
    if (variant.guard.holds(of.sizeValues)) {
      of.standard = variant.schedule;
      break;
    }
  of.key.op = digestOf(signatureOf(of.op));
  of.key.family = digestOf(familyOf(of.op));
  of.key.phase = toString(of.phase);
  of.key.sizes = of.sizes;
  of.key.threads = of.threads;
  of.key.cache = of.cache;
  of.key.bits = of.bits;
  of.key.standard = of.standard.text(of.op);
  of.key.machine = MachineKey::of(target);
}

} // namespace normforge::tune
