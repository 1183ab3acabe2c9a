// The tables of a job's page; each is made anew where what it shows has changed.

import { badge, byClass, bytes, count, duration, h, number, percent, sum, when } from "./lib.js";

const head = (...names) =>
  h("thead", {}, h("tr", {}, names.map((each) => h("th", { scope: "col", class: each.startsWith(">") ? "n" : each.startsWith("<") ? "grow" : null }, each.replace(/^[<>]/, "")))));
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
  return table(["State", ">Workers", "<"], states.sort((a, b) => b[1] - a[1]).map(([state, each]) => h("tr", {}, cell(state, "name"), count(each), cell(share(each, all)))));
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
    rows.map((each) =>
      h(
        "tr",
        {},
        cell(each.name, worker ? "mono" : "name"),
        count(each.tasks),
        count(each.ok),
        h("td", { class: each.failed ? "n failing" : "n zero" }, number(each.failed)),
        h("td", { class: each.failed ? "n" : "n zero" }, percent(each.failed, each.ok + each.failed)),
        h("td", { class: "n" }, each.tasks ? duration(each.busy_ms / each.tasks) : "–"),
        worker ? count(each.leased) : null,
      ),
    ),
  );
}

export function limits(found) {
  if (!found.length) return none("This job has no rate limits.");
  return table(
    ["Limit", ">Rate now", ">Configured", ">Cuts", ">Reserved ahead", ">Used"],
    found.map((each) =>
      h(
        "tr",
        {},
        h("td", { class: "name", title: `scope ${each.scope}` }, each.name),
        h("td", { class: each.current_rate < each.rate ? "n failing" : "n" }, `${each.current_rate}/s`),
        h("td", { class: "n" }, `${each.rate}/s`),
        count(each.cuts),
        h("td", { class: "n" }, each.ahead_s ? duration(each.ahead_s * 1000) : "idle"),
        h("td", { class: "n" }, each.quota_per_day ? `${number(each.used)} of ${number(each.quota_per_day)} today` : number(each.used)),
      ),
    ),
  );
}

export function cost(found) {
  const rows = found.lines.map((each) => h("tr", {}, cell(each.kind.replaceAll("_", " ")), count(each.requests), h("td", { class: "n" }, dollars(each.dollars))));
  const total = h("tr", {}, cell("all", "name"), count(found.lines.reduce((all, each) => all + each.requests, 0)), h("td", { class: "n name" }, dollars(found.dollars)));
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
  const advice = found.advice.length ? h("ul", { class: "advice" }, found.advice.map((each) => h("li", {}, each))) : h("p", { class: "muted" }, "No advice.");
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
  const first = Math.min(...found.map((each) => each.start_ms));
  const last = Math.max(...found.map((each) => each.end_ms ?? now));
  const span = Math.max(1, last - first);
  return found.map((each) => {
    const end = each.end_ms ?? now;
    const bar = h("span", { class: each.end_ms === null ? "open" : null });
    bar.style.left = `min(${(100 * (each.start_ms - first)) / span}%, calc(100% - 4px))`;
    bar.style.width = `${(100 * Math.max(0, end - each.start_ms)) / span}%`;
    const length = each.end_ms === each.start_ms ? "" : `, ${duration(end - each.start_ms)}${each.end_ms === null ? " so far" : ""}`;
    return h("div", { class: "lane" }, h("span", {}, each.name), h("div", { class: "track", "aria-hidden": true }, bar), h("span", { class: "muted small" }, when(each.start_ms), length));
  });
}

export function rounds({ rounds: found, submissions }) {
  return table(
    ["Round", "State", ">Tasks", ">Items", "Tried again", "Workers", "Slurm arrays", "<Options", ">Opened"],
    found.map((each) => {
      const mine = submissions.filter((row) => row.round === each.number);
      const back = sum(each.tasks_back) ? `${number(sum(each.tasks_back))} tasks put back` : "";
      const again = [byClass(each.retried), back].filter(Boolean).join("; ");
      return h(
        "tr",
        {},
        cell(String(each.number), "name"),
        h("td", {}, badge(each.state === "open" ? "planned" : each.state)),
        count(each.tasks),
        count(each.items),
        cell(again || "–"),
        cell(mine.map((row) => number(row.workers)).join(" + ") || "–"),
        cell(mine.flatMap((row) => row.slurm_job_ids).join(", ") || "–", "mono"),
        cell(Object.entries(each.slurm).map(([name, value]) => `${name}=${value}`).join(" ") || "–", "mono"),
        h("td", { class: "n muted" }, when(each.opened_ms)),
      );
    }),
  );
}

export function events(found) {
  if (!found.length) return none("No events yet.");
  return table(
    ["When", "Who", "What", "<"],
    found.map((each) => {
      const detail = Object.entries(each.detail).filter(([, value]) => value !== "" && value !== null && JSON.stringify(value) !== "{}" && JSON.stringify(value) !== "[]");
      const text = detail.map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(" · ");
      return h("tr", {}, h("td", { class: "muted nowrap" }, when(each.at_ms)), cell(each.actor, "name"), cell(each.action), cell(text, "wrap muted"));
    }),
  );
}
