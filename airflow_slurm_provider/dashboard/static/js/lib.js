// What every page uses: the API, polling, elements, and how numbers and times are written.

const root = document.documentElement;
export const base = root.dataset.root;
export const conn = root.dataset.conn;

/** An address of ours, below the prefix and for the chosen site. */
export function address(path, query = {}) {
  const params = new URLSearchParams(query);
  if (conn) params.set("conn", conn);
  const text = params.toString();
  return `${base}${path}${text ? `?${text}` : ""}`;
}

export const jobAddress = (job) => address(`/jobs/${encodeURIComponent(job)}`);
export const taskAddress = (job, task) => address(`/jobs/${encodeURIComponent(job)}/tasks/${task}`);

/** Why a request failed; `status` is 0 where nothing answered. */
export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

const TIMEOUT_MS = 60_000;

async function request(method, path, query, body) {
  const headers = { Accept: "application/json" };
  if (method === "POST") {
    headers["X-CSRF-Token"] = document.querySelector('meta[name="csrf-token"]').content;
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(address(`/api${path}`, query), {
      method,
      headers,
      credentials: "same-origin",
      signal: AbortSignal.timeout(TIMEOUT_MS),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(0, late ? "the dashboard does not answer" : "the dashboard can't be reached");
  }
  const text = await response.text();
  let found = null;
  try {
    found = JSON.parse(text);
  } catch {
    // Something between us and the dashboard answered; its status says what.
  }
  if (!response.ok) throw new ApiError(response.status, found?.detail || response.statusText);
  return found;
}

export const get = (path, query) => request("GET", path, query);
export const post = (path, body) => request("POST", path, {}, body);

/**
 * Asks again and again: every `everyMs` while all is well, ever less often while it isn't,
 * and not at all while the page is hidden.
 */
export function poll(ask, { everyMs, report }) {
  const longestMs = 60_000;
  let waitMs = everyMs;
  let timer = 0;
  let asking = false;
  let ended = false;

  async function turn() {
    clearTimeout(timer);
    if (asking || ended || document.hidden) return;
    asking = true;
    try {
      const next = await ask();
      waitMs = typeof next === "number" ? next : everyMs;
      report?.(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      waitMs = Math.min(longestMs, Math.max(everyMs, waitMs) * 2);
      if (error.status === 404) ended = true;
      report?.(error, waitMs);
    } finally {
      asking = false;
    }
    if (!ended) timer = setTimeout(turn, waitMs);
  }
  document.addEventListener("visibilitychange", turn);
  turn();
  return { now: turn };
}

/** Tells at the top of the page how fresh it is, and what is away. */
export function freshness() {
  const live = document.getElementById("live");
  const banner = document.getElementById("away");
  let seen = 0;
  let retryAt = 0;
  let problem = null;

  function show() {
    const now = Date.now();
    live.dataset.state = problem ? "away" : seen ? "ok" : "";
    if (seen) live.textContent = problem ? `as of ${ago(seen)}` : "live";
    else if (problem) live.textContent = "no answer yet";
    banner.hidden = !problem;
    if (!problem) return;
    const left = Math.max(0, Math.round((retryAt - now) / 1000));
    banner.querySelector(".what").textContent = problem.message;
    banner.querySelector(".sub").textContent = retryAt
      ? `Trying again ${left ? `in ${left} s` : "now"}.${seen ? " What is shown is older." : ""}`
      : "";
    const title = { 0: "No answer", 401: "Signed out", 403: "Not allowed", 404: "Not found" };
    banner.querySelector("strong").textContent = title[problem.status] ?? "Can't be reached";
  }
  setInterval(show, 1000);
  return (error, waitMs) => {
    problem = error;
    if (!error) seen = Date.now();
    retryAt = error && error.status !== 404 ? Date.now() + waitMs : 0;
    show();
  };
}

/** An element; text children are text, never markup. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Replaces what an element holds, if what it is made from has changed; focus stays. */
export function fill(element, data, make) {
  const key = JSON.stringify(data);
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
  element.replaceChildren(...[make(data)].flat(2).filter((child) => child !== null));
  if (focused) document.getElementById(focused)?.focus();
}

export const $ = (id) => document.getElementById(id);

export function text(id, value) {
  const element = $(id);
  if (element.textContent !== value) element.textContent = value;
  element.classList.remove("bone");
}

const whole = new Intl.NumberFormat("en");
export const number = (value) => whole.format(value);
export const count = (value) =>
  h("td", { class: value ? "n" : "n zero" }, number(value));

export function percent(part, all, digits = 1) {
  if (!all) return "0 %";
  // Never 100 % before the end, never 0 % after the beginning.
  const share = Math.min((100 * part) / all, part < all ? 100 - 10 ** -digits : 100);
  return `${(part ? Math.max(share, 10 ** -digits) : 0).toFixed(part === all ? 0 : digits)} %`;
}

export function rate(value) {
  if (!value) return "–";
  return `${value >= 100 ? whole.format(Math.round(value)) : value.toPrecision(3)}/s`;
}

export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  const s = ms / 1000;
  if (s < 1) return `${Math.round(ms)} ms`;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(s % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = value ? Math.min(units.length - 1, Math.floor(Math.log10(value) / 3)) : 0;
  return `${(value / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

export function ago(ms) {
  const s = Math.max(0, (Date.now() - ms) / 1000);
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} d ago`;
}

const clock = new Intl.DateTimeFormat("en-GB", {
  year: "numeric", month: "short", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

export function when(ms) {
  if (!ms) return "–";
  return h("time", { datetime: new Date(ms).toISOString(), title: ago(ms) }, clock.format(ms));
}

export const sum = (counts) => Object.values(counts).reduce((all, value) => all + value, 0);

export function byClass(counts) {
  const sorted = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  return sorted.map(([name, value]) => `${name} ${number(value)}`).join(", ");
}

export const badge = (state) => h("span", { class: "badge", "data-state": state }, state);

/** The parts of a progress bar, as shares of all items. */
export function progressBar(job, mini = false) {
  const bar = h("div", { class: mini ? "bar mini" : "bar", role: "progressbar", "aria-label": `${job.job_id}: items finished`, "aria-valuemin": 0, "aria-valuemax": 100 });
  bar.append(h("span", { class: "ok" }), h("span", { class: "fail" }), h("span", { class: "run" }));
  setBar(bar, job);
  return bar;
}

export function setBar(bar, job) {
  const failed = sum(job.failed);
  const parts = [job.ok, failed, job.running_items];
  [...bar.children].forEach((stripe, index) => {
    stripe.style.width = job.items ? `${(100 * parts[index]) / job.items}%` : "0";
  });
  bar.setAttribute("aria-valuenow", job.items ? Math.floor((100 * (job.ok + failed)) / job.items) : 0);
  bar.setAttribute("aria-valuetext", `${number(job.ok)} ok, ${number(failed)} failed, ${number(job.pending)} pending`);
}

export function copyable(command) {
  const button = h("button", { type: "button", class: "slim" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it";
    }
  });
  return h("span", { class: "command" }, h("code", {}, command), button);
}
