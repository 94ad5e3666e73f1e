// Panels of lines on a logarithmic scale, two rows of three, as SVG.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

namespace train {

struct Line {
  std::string name;
  std::vector<double> values; ///< what is not finite ends it
};
struct Panel {
  std::string title;
  std::vector<Line> lines;
};

/// Means over the last ten.
inline std::vector<double> smoothed(const std::vector<double> &values) {
  std::vector<double> means;
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t first = i < 9 ? 0 : i - 9;
    double sum = 0;
    for (size_t k = first; k <= i; ++k)
      sum += values[k];
    means.push_back(sum / static_cast<double>(i - first + 1));
  }
  return means;
}

/// Decades from `least` to `most`. False where the file cannot be written.
inline bool drawPanels(const std::string &path, const std::vector<Panel> &panels, int least,
                       int most, const char *vertical, const char *horizontal) {
  constexpr const char *colors[] = {"#b3452c", "#1f6fb2", "#5a8f29"};
  constexpr double width = 240, height = 160, left = 60, top = 50, gapX = 50, gapY = 60;
  std::ofstream svg(path);
  svg.precision(5);
  svg << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 920 480\" "
         "font-family=\"sans-serif\" font-size=\"11\">\n"
         "<rect width=\"920\" height=\"480\" fill=\"#ffffff\"/>\n";
  for (size_t i = 0; i < panels[0].lines.size(); ++i)
    svg << "<text x=\"" << left + 160 * static_cast<double>(i) << "\" y=\"18\" fill=\"" << colors[i]
        << "\">normalization: " << panels[0].lines[i].name << "</text>\n";
  svg << "<text x=\"14\" y=\"240\" text-anchor=\"middle\" transform=\"rotate(-90 14 240)\">"
      << vertical << "</text>\n<text x=\"490\" y=\"474\" text-anchor=\"middle\">" << horizontal
      << "</text>\n";
  for (size_t p = 0; p < panels.size(); ++p) {
    const double x0 = left + static_cast<double>(p % 3) * (width + gapX),
                 y0 = top + static_cast<double>(p / 3) * (height + gapY);
    auto y = [&](double value) {
      const double decades = most - least;
      return y0 + height * (most - std::clamp<double>(std::log10(value), least, most)) / decades;
    };
    svg << "<text x=\"" << x0 << "\" y=\"" << y0 - 8 << "\">" << panels[p].title << "</text>\n";
    const int apart = most - least > 6 ? 2 : 1;
    for (int decade = least; decade <= most; decade += apart)
      svg << "<line x1=\"" << x0 << "\" x2=\"" << x0 + width << "\" y1=\""
          << y(std::pow(10, decade)) << "\" y2=\"" << y(std::pow(10, decade))
          << "\" stroke=\"#dddddd\"/><text x=\"" << x0 - 5 << "\" y=\""
          << y(std::pow(10, decade)) + 4 << "\" text-anchor=\"end\">1e" << decade << "</text>\n";
    for (size_t i = 0; i < panels[p].lines.size(); ++i) {
      const std::vector<double> &values = panels[p].lines[i].values;
      svg << "<polyline fill=\"none\" stroke-width=\"1.5\" stroke=\"" << colors[i]
          << "\" points=\"";
      for (size_t k = 0; k < values.size() && std::isfinite(values[k]); ++k)
        svg << x0 + width * static_cast<double>(k) / static_cast<double>(values.size() - 1) << ","
            << y(values[k]) << " ";
      svg << "\"/>\n";
    }
    const size_t count = panels[p].lines[0].values.size();
    svg << "<text x=\"" << x0 << "\" y=\"" << y0 + height + 16 << "\">1</text><text x=\""
        << x0 + width << "\" y=\"" << y0 + height + 16 << "\" text-anchor=\"end\">" << count
        << "</text>\n";
  }
  svg << "</svg>\n";
  svg.close();
  return bool(svg);
}

} // namespace train
