// Charts over time: stacked bars and running sums, by uPlot, in the page's colours.

import { h, number } from "./lib.js";

/* global uPlot */

const MOST_BARS = 90;
const charts = new Map();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Regular steps out of the job's buckets, so few that each is a bar; empty ones are zero. */
export function steps(timeline, untilS) {
  const { start_s: starts, width_s: width } = timeline;
  if (!starts.length) return { times: [], width, index: [] };
  const first = starts[0];
  const last = Math.max(starts.at(-1), Math.floor((untilS ?? 0) / width) * width);
  const spread = (last - first) / width + 1;
  const wide = width * Math.max(1, Math.ceil(spread / MOST_BARS));
  const times = [];
  for (let at = first; at <= last; at += wide) times.push(at);
  return { times, width: wide, index: starts.map((start) => Math.floor((start - first) / wide)) };
}

export function regroup(values, { times, index }) {
  const sums = new Array(times.length).fill(0);
  values.forEach((value, place) => {
    sums[index[place]] += value;
  });
  return sums;
}

/** Bars of one series on top of the other. `series` are {label, colour, values}. */
export function stackedBars(element, times, series, { unit = "", empty, height }) {
  const totals = times.map(() => 0);
  const stacked = series.map((curve) => curve.values.map((value, place) => (totals[place] += value)));
  const lines = series.map((curve) => ({
    label: curve.label,
    tint: curve.colour,
    fill: () => colour(curve.colour),
    stroke: () => colour(curve.colour),
    width: 0,
    points: { show: false },
    paths: uPlot.paths.bars({ size: [0.86, 48], align: 1 }),
    value: (_, __, ___, place) => (place === null ? "–" : figure(curve.values[place]) + unit),
  }));
  // The highest stack is drawn first, and the ones below over it.
  draw(element, [times, ...stacked.toReversed()], lines.toReversed(), { unit, empty, height });
}

/** Sums that only rise, and the line that they are to reach. */
export function runningSums(element, times, series, { goal, empty, height }) {
  const lines = series.map((curve) => ({
    label: curve.label,
    tint: curve.colour,
    stroke: () => colour(curve.colour),
    fill: curve.fill ? () => `${colour(curve.colour)}24` : undefined,
    width: 2,
    points: { show: false },
    value: (_, value) => (value === null || value === undefined ? "–" : number(value)),
  }));
  const sums = series.map((curve) => {
    let all = 0;
    return curve.values.map((value) => (all += value));
  });
  // The goal is in sight once a third is done; before, the data gives the scale.
  const reached = Math.max(0, ...sums.map((values) => values.at(-1) ?? 0));
  draw(element, [times, ...sums], lines, { goal: 3 * reached > goal ? goal : 0, empty, height });
}

function draw(element, data, series, { goal, unit, empty, height }) {
  const key = JSON.stringify([data, series.map((curve) => curve.label), goal]);
  const standing = charts.get(element);
  if (standing?.key === key && standing.width === element.clientWidth) return;
  if (data[0].length === 0) {
    standing?.plot?.destroy();
    charts.delete(element);
    element.replaceChildren(h("div", { class: "empty" }, empty));
    return;
  }
  const names = series.map((curve) => curve.label).join();
  if (standing?.plot && standing.names === names && standing.width === element.clientWidth && standing.goal === goal) {
    standing.plot.setData(data);
    charts.set(element, { ...standing, key, again: () => draw(element, data, series, { goal, unit, empty, height }) });
    return;
  }
  standing?.plot?.destroy();
  element.replaceChildren();
  const plot = new uPlot(options(element, series, { goal, unit, height }), data, element);
  charts.set(element, {
    key, names, plot, goal, width: element.clientWidth,
    again: () => draw(element, data, series, { goal, unit, empty, height }),
  });
}

function options(element, series, { goal, height }) {
  const axis = {
    stroke: () => colour("--muted"),
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { stroke: () => colour("--line"), width: 1 },
    font: "12px system-ui, sans-serif",
  };
  const top = (_, __, max) => [0, niceTop(Math.max(max ?? 0, goal ?? 0))];
  return {
    width: element.clientWidth,
    height: (height ?? element.clientHeight) - 30,
    cursor: { points: { show: false }, drag: { x: true, y: false } },
    legend: { live: true, markers: { width: 0, fill: (_, place) => (place ? colour(series[place - 1].tint) : "transparent") } },
    scales: { x: { time: true }, y: { range: top } },
    axes: [
      { ...axis, space: 96, values: clock },
      { ...axis, size: 56, values: (_, ticks) => ticks.map(figure) },
    ],
    series: [{ label: "time", value: (_, at) => (at ? new Date(at * 1000).toLocaleTimeString("en-GB") : "–") }, ...series],
  };
}

const niceTop = (max) => (max > 0 ? max * 1.06 : 1);

function clock(plot, ticks) {
  const day = plot.scales.x.max - plot.scales.x.min > 86_400;
  const style = day
    ? { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" }
    : { hour: "2-digit", minute: "2-digit", second: plot.scales.x.max - plot.scales.x.min < 600 ? "2-digit" : undefined };
  return ticks.map((tick) => new Date(tick * 1000).toLocaleString("en-GB", style));
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return String(+value.toPrecision(3));
}

function redraw() {
  for (const [element, chart] of [...charts]) {
    chart.plot.destroy();
    charts.delete(element);
    chart.again();
  }
}

window.addEventListener("themechange", redraw);
let resizing = 0;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(redraw, 150);
});
