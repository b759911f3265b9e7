"use strict";
// Draws the learning curves of each stage with uPlot, in the colors of the page.
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const charts = [];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (name, text) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const shown = (value) => (value === null || value === undefined ? "-" : String(Number(value.toPrecision(4))));

  // The steps of all runs, and for each run its values at these steps.
  const aligned = (lines) => {
    const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    return [steps, ...lines.map((line) => {
      const known = new Map(line.x.map((step, place) => [step, line.y[place]]));
      return steps.map((step) => (known.has(step) ? known.get(step) : null));
    })];
  };

  const draw = (figure, lines) => {
    const values = aligned(lines);
    const axis = { stroke: () => color("--soft"), grid: { stroke: () => color("--line"), width: 1 },
      ticks: { stroke: () => color("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const options = {
      width: Math.max(figure.clientWidth, 200), height: 190, scales: { x: { time: false } }, cursor: { y: false },
      axes: [axis, { ...axis, size: 62, values: (chart, ticks) => ticks.map(shown) }],
      series: [{ label: "step", value: (chart, value) => shown(value) }, ...lines.map((line) => ({
        label: report.runs.length > 1 ? report.runs[line.run] : "value", spanGaps: true, width: 1.6,
        stroke: () => color(line.run === 0 ? "--accent" : "--second"), dash: line.run === 0 ? [] : [6, 3],
        value: (chart, value) => shown(value), points: { show: line.x.length <= 30, fill: () => color("--back") },
      }))],
    };
    const chart = new uPlot(options, values, figure);
    charts.push({ chart, figure });
    return chart;
  };

  const figureOf = (name, lines) => {
    const figure = make("figure");
    figure.append(make("figcaption", name));
    return [figure, () => draw(figure, lines)];
  };

  for (const box of document.querySelectorAll("[data-curves]")) {
    const stage = report.curves[Number(box.dataset.curves)];
    const draws = stage.first.map((name) => {
      const [figure, start] = figureOf(name, stage.metrics[name]);
      box.append(figure);
      return start;
    });
    const others = Object.keys(stage.metrics).filter((name) => !stage.first.includes(name));
    if (others.length) {
      const label = make("label", `Another metric of ${stage.stage}`);
      const select = make("select");
      select.append(make("option", "choose"));
      for (const name of others) select.append(make("option", name));
      label.append(select);
      const figure = make("figure");
      figure.append(label);
      box.append(figure);
      let last = null;
      select.addEventListener("change", () => {
        if (last) {
          last.destroy();
          charts.splice(charts.findIndex((each) => each.chart === last), 1);
          last = null;
        }
        if (select.selectedIndex > 0) last = draw(figure, stage.metrics[select.value]);
      });
    }
    // Charts are drawn when they come near the window, so that they do not delay the rest of the page.
    const watch = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      for (const start of draws) start();
    }, { rootMargin: "600px" });
    watch.observe(box);
  }

  const fit = () => {
    for (const { chart, figure } of charts) {
      const width = Math.max(figure.clientWidth, 200);
      if (width !== chart.width) chart.setSize({ width, height: chart.height });
    }
  };
  window.addEventListener("resize", fit);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const { chart } of charts) chart.redraw(false, true);
  });
})();
