// Failures by class, and on demand their messages.

import { $, fill, get, h, number, percent, sum } from "./lib.js";

export function failures(job) {
  const items = Object.entries(job.failed).sort((a, b) => b[1] - a[1]);
  const given = Object.entries(job.task_errors);
  $("explain").hidden = !items.length && !given.length;
  if (!items.length && !given.length) {
    return h("p", { class: "muted" }, job.ok ? "None so far." : "None yet.");
  }
  const all = sum(job.failed);
  const rows = items.map(([name, amount]) => {
    const bar = h("div", { class: "bar mini", "aria-hidden": true }, h("span", { class: "fail" }));
    bar.firstChild.style.width = `${(100 * amount) / all}%`;
    return h("tr", {}, h("td", { class: "name" }, name), h("td", { class: "n" }, number(amount)), h("td", { class: "n muted" }, percent(amount, job.items, 2)), h("td", {}, bar), h("td", {}, "items"));
  });
  for (const [name, amount] of given) {
    rows.push(h("tr", {}, h("td", { class: "name" }, name), h("td", { class: "n" }, number(amount)), h("td", {}), h("td", {}), h("td", {}, "tasks given up")));
  }
  const head = h("tr", {}, h("th", { scope: "col" }, "Class"), h("th", { scope: "col", class: "n" }, "Count"), h("th", { scope: "col", class: "n" }, "Of all"), h("th", { scope: "col", class: "grow" }, ""), h("th", { scope: "col" }, "Of"));
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows)));
}

/** The button that reads the messages, out of the parts of failed items. */
export function watchFailures(path) {
  const button = $("explain");
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Reading…";
    try {
      fill($("groups"), await get(`${path}/failures`), groups);
      button.textContent = "Read again";
    } catch (error) {
      fill($("groups"), error.message, (message) => h("p", { class: "failing" }, message));
      button.textContent = "Try again";
    } finally {
      button.disabled = false;
    }
  });
}

function groups(found) {
  return found.map((group) => {
    const what = group.of === "task" ? "tasks given up" : "items";
    const again = group.superseded ? ` (${number(group.superseded)} earlier failures retried)` : "";
    const nodes = Object.entries(group.nodes).sort((a, b) => b[1] - a[1]).slice(0, 5);
    return h(
      "div",
      { class: "group" },
      h("div", { class: "row" }, h("span", {}, h("strong", {}, group.error_class), ` ${group.message}`), h("span", {}, `${number(group.count)} ${what}${again}`)),
      h("ul", {}, group.examples.map((example) => h("li", {}, h("code", {}, example.key), `: ${example.message}`))),
      nodes.length ? h("p", { class: "muted small" }, `on ${nodes.map(([node, times]) => `${node} ${number(times)}`).join(", ")}`) : null,
    );
  });
}
