// The tables of a job's page. Each is made again when its data has changed.

import { badge, byClass, bytes, count, duration, h, number, percent, sum, when } from "./lib.js";

export const head = (...names) =>
  h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col", class: name.startsWith(">") ? "n" : name.startsWith("<") ? "grow" : null }, name.replace(/^[<>]/, "")))));
const table = (names, rows) => h("table", {}, head(...names), h("tbody", {}, rows));
const cell = (value, kind) => h("td", { class: kind }, value);
const none = (message) => h("p", { class: "muted" }, message);

export function taskStates({ job, times, lost }) {
  const rows = Object.entries(job.tasks).map(([state, tasks]) => [badge(state), number(tasks)]);
  rows.push(["Took, median", duration(times.median_ms)], ["95 % within", duration(times.p95_ms)], ["Leases lost", number(lost)]);
  return rows.map(([name, value]) => [h("dt", {}, name), h("dd", { class: "n" }, value)]);
}

export function workerStates(workers) {
  if (workers.problem) return h("p", { class: "muted" }, `Slurm can't be reached: ${workers.problem}. Trying again.`);
  const states = Object.entries(workers.states);
  if (!states.length) return none(workers.slurm_job_ids.length ? "Slurm has no answer yet." : "No workers were submitted yet.");
  const all = sum(workers.states);
  return table(["State", ">Workers", "<"], states.sort((a, b) => b[1] - a[1]).map(([state, amount]) => h("tr", {}, cell(state, "name"), count(amount), cell(share(amount, all)))));
}

function share(part, all) {
  const bar = h("div", { class: "bar mini", "aria-hidden": true }, h("span", { class: "run" }));
  bar.firstChild.style.width = `${(100 * part) / all}%`;
  return bar;
}

export function shares(rows, name) {
  if (!rows.length) return none("No task is done yet.");
  const worker = name === "Worker";
  const names = [name, ">Tasks", ">Items ok", ">Failed", ">Error rate", ">Mean per task"];
  if (worker) names.push(">Holds");
  return table(
    names,
    rows.map((row) =>
      h(
        "tr",
        {},
        cell(row.name, worker ? "mono" : "name"),
        count(row.tasks),
        count(row.ok),
        h("td", { class: row.failed ? "n failing" : "n zero" }, number(row.failed)),
        h("td", { class: row.failed ? "n" : "n zero" }, percent(row.failed, row.ok + row.failed)),
        h("td", { class: "n" }, row.tasks ? duration(row.busy_ms / row.tasks) : "–"),
        worker ? count(row.leased) : null,
      ),
    ),
  );
}

export function limits(found) {
  if (!found.length) return none("This job has no rate limits.");
  return table(
    ["Limit", ">Rate now", ">Configured", ">Cuts", ">Reserved ahead", ">Used"],
    found.map((limit) =>
      h(
        "tr",
        {},
        h("td", { class: "name", title: `scope ${limit.scope}` }, limit.name),
        h("td", { class: limit.current_rate < limit.rate ? "n failing" : "n" }, `${limit.current_rate}/s`),
        h("td", { class: "n" }, `${limit.rate}/s`),
        count(limit.cuts),
        h("td", { class: "n" }, limit.ahead_s ? duration(limit.ahead_s * 1000) : "idle"),
        h("td", { class: "n" }, limit.quota_per_day ? `${number(limit.used)} of ${number(limit.quota_per_day)} today` : number(limit.used)),
      ),
    ),
  );
}

export function cost(found) {
  const rows = found.lines.map((line) => h("tr", {}, cell(line.kind.replaceAll("_", " ")), count(line.requests), h("td", { class: "n" }, dollars(line.dollars))));
  const total = h("tr", {}, cell("all", "name"), count(found.lines.reduce((all, line) => all + line.requests, 0)), h("td", { class: "n name" }, dollars(found.dollars)));
  const bill = table(["<AWS requests", ">Number", ">Dollars"], [...rows, total]);
  const use = found.cluster;
  const facts = [["Expected for such tasks", dollars(found.dollars_expected)]];
  if (use) {
    facts.push(
      ["CPU time allocated", `${use.cpu_hours_allocated.toFixed(3)} CPU-hours in ${number(use.starts)} worker starts`],
      ["CPU time used", use.cpu_efficiency === null ? "known when workers end" : percent(use.cpu_efficiency, 1, 0)],
      ["Memory used", use.memory_efficiency === null ? "known when workers end" : `${bytes(use.memory_bytes_used)} of ${bytes(use.memory_bytes_given)}`],
    );
  } else facts.push(["Cluster", found.problem || "not known"]);
  const advice = found.advice.length ? h("ul", { class: "advice" }, found.advice.map((text) => h("li", {}, text))) : h("p", { class: "muted" }, "No advice.");
  return h(
    "div",
    { class: "columns" },
    h("div", { class: "scroll-in" }, bill),
    h("div", {}, h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])), h("h3", {}, "Advice"), advice),
  );
}

const dollars = (value) => `$${value >= 0.01 || !value ? value.toFixed(2) : value.toPrecision(2)}`;

export function phases({ phases: found, at_ms: now }) {
  if (!found.length) return none("Nothing has started yet.");
  const first = Math.min(...found.map((phase) => phase.start_ms));
  const last = Math.max(...found.map((phase) => phase.end_ms ?? now));
  const span = Math.max(1, last - first);
  return found.map((phase) => {
    const end = phase.end_ms ?? now;
    const bar = h("span", { class: phase.end_ms === null ? "open" : null });
    bar.style.left = `min(${(100 * (phase.start_ms - first)) / span}%, calc(100% - 4px))`;
    bar.style.width = `${(100 * Math.max(0, end - phase.start_ms)) / span}%`;
    const length = phase.end_ms === phase.start_ms ? "" : `, ${duration(end - phase.start_ms)}${phase.end_ms === null ? " so far" : ""}`;
    return h("div", { class: "lane" }, h("span", {}, phase.name), h("div", { class: "track", "aria-hidden": true }, bar), h("span", { class: "muted small" }, when(phase.start_ms), length));
  });
}

export function rounds({ rounds: found, submissions }) {
  return table(
    ["Round", "State", ">Tasks", ">Items", "Tried again", "Workers", "Slurm arrays", "<Options", ">Opened"],
    found.map((round) => {
      const mine = submissions.filter((row) => row.round === round.number);
      const back = sum(round.tasks_back) ? `${number(sum(round.tasks_back))} tasks put back` : "";
      const again = [byClass(round.retried), back].filter(Boolean).join("; ");
      return h(
        "tr",
        {},
        cell(String(round.number), "name"),
        h("td", {}, badge(round.state === "open" ? "planned" : round.state)),
        count(round.tasks),
        count(round.items),
        cell(again || "–"),
        cell(mine.map((row) => number(row.workers)).join(" + ") || "–"),
        cell(mine.flatMap((row) => row.slurm_job_ids).join(", ") || "–", "mono"),
        cell(Object.entries(round.slurm).map(([name, value]) => `${name}=${value}`).join(" ") || "–", "mono"),
        h("td", { class: "n muted" }, when(round.opened_ms)),
      );
    }),
  );
}

export function events(found) {
  if (!found.length) return none("No events yet.");
  return table(
    ["When", "Who", "What", "<"],
    found.map((event) => {
      const detail = Object.entries(event.detail).filter(([, value]) => value !== "" && value !== null && JSON.stringify(value) !== "{}" && JSON.stringify(value) !== "[]");
      const text = detail.map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(" · ");
      return h("tr", {}, h("td", { class: "muted nowrap" }, when(event.at_ms)), cell(event.actor, "name"), cell(event.action), cell(text, "wrap muted"));
    }),
  );
}
