// Single tasks of a job, a page at a time, by state; and the slowest.

import { $, ApiError, badge, count, duration, fill, get, h, number, taskAddress } from "./lib.js";
import { head } from "./tables.js";

const LIMIT = 25;
const TABS = [
  ["slowest", "Slowest"], ["leased", "Running"], ["failed", "Failed"], ["quarantined", "Quarantined"], ["", "All"],
];
const LIVE = new Set(["leased", "failed", "quarantined"]);

export function watchTasks(path, job) {
  let chosen = "slowest";
  let after = "";
  let next = "";
  let detail = null;

  const buttons = TABS.map(([state, label], place) => {
    const button = h("button", { type: "button", role: "tab", id: `tab-${state || "all"}`, "aria-controls": "tasks", class: "slim" }, label);
    button.addEventListener("click", () => choose(state));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const other = buttons[(place + step + TABS.length) % TABS.length];
        other.focus();
        other.click();
      }
    });
    return button;
  });
  $("tabs").append(...buttons);
  $("tasks-next").addEventListener("click", () => turn(next));
  $("tasks-first").addEventListener("click", () => turn(""));
  mark();

  function choose(state) {
    chosen = state;
    mark();
    turn("");
  }

  function mark() {
    TABS.forEach(([state], place) => {
      buttons[place].setAttribute("aria-selected", String(state === chosen));
      buttons[place].tabIndex = state === chosen ? 0 : -1;
    });
  }

  function turn(place) {
    after = place;
    read();
  }

  async function read() {
    if (!detail) return;
    if (chosen === "slowest") {
      pager("");
      fill($("tasks"), ["slowest", detail.slowest], ([, rows]) => slowest(rows, job));
      return;
    }
    const [state, place] = [chosen, after];
    try {
      const query = { after: place, limit: LIMIT };
      if (state) query.state = state;
      const found = await get(`${path}/tasks`, query);
      if (state !== chosen || place !== after) return;
      pager(found.next);
      fill($("tasks"), [state, found.tasks], ([, rows]) => list(rows, job, found.next));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      fill($("tasks"), error.message, (message) => h("p", { class: "failing" }, message));
    }
  }

  function pager(goesOn) {
    next = goesOn;
    $("tasks-next").hidden = !goesOn;
    $("tasks-first").hidden = !after;
  }

  return {
    update(found) {
      const first = !detail;
      detail = found;
      TABS.forEach(([state, label], place) => {
        const tasks = LIVE.has(state) ? (found.job.tasks[state] ?? 0) : 0;
        const shown = tasks ? `${label} ${number(tasks)}` : label;
        if (buttons[place].textContent !== shown) buttons[place].textContent = shown;
      });
      if (first || chosen === "slowest" || (LIVE.has(chosen) && !after)) read();
    },
  };
}

const link = (job, task) => h("a", { href: taskAddress(job, task), id: `task-${task}`, class: "mono" }, task);

function slowest(rows, job) {
  if (!rows.length) return h("p", { class: "muted" }, "No task is done yet.");
  const most = rows.slice(0, 10);
  return h("table", {}, head("Task", ">Took", "Node", "<Worker"), h("tbody", {}, most.map((row) => h("tr", {}, h("td", {}, link(job, row.task)), h("td", { class: "n" }, duration(row.took_ms)), h("td", {}, row.node), h("td", { class: "mono muted" }, row.worker)))));
}

function list(rows, job, goesOn) {
  if (!rows.length) return h("p", { class: "muted" }, goesOn ? "None among the tasks that were read so far; continue with the next page." : "None.");
  return h(
    "table",
    {},
    head("Task", "State", ">Items", ">Ok", ">Failed", ">Attempt", ">Lost", "Worker", "<Error"),
    h("tbody", {}, rows.map((row) =>
      h(
        "tr",
        {},
        h("td", {}, link(job, row.task)),
        h("td", {}, badge(row.state)),
        count(row.items),
        count(row.ok),
        h("td", { class: row.failed ? "n failing" : "n zero" }, number(row.failed)),
        count(row.attempt),
        count(row.lost),
        h("td", { class: "mono muted" }, row.worker || "–"),
        h("td", { class: "wrap" }, row.error_class ? `${row.error_class}: ${row.error}` : ""),
      ),
    )),
  );
}
