// How an alert is shown, on the page of all and on a job's.

import { duration, h, jobAddress, when } from "./lib.js";

export const open = (alert) => !alert.over_ms;
export const kind = (alert) => alert.kind.replaceAll("_", " ");

export function alertRow(alert, withJob) {
  const state = open(alert) ? "open" : "over";
  return h(
    "tr",
    {},
    h("td", {}, h("span", { class: "badge", "data-state": state }, state)),
    h("td", { class: "name" }, kind(alert)),
    withJob ? h("td", { class: "name" }, h("a", { href: jobAddress(alert.job_id), id: `alert-${alert.job_id}-${alert.id}` }, alert.job_id)) : null,
    h("td", { class: "wrap" }, alert.message, h("div", { class: "muted" }, alert.advice)),
    h("td", { class: "n muted" }, when(alert.at_ms)),
    h("td", { class: "n" }, open(alert) ? "lasts" : duration(alert.over_ms - alert.at_ms)),
  );
}
