// Actions on a job. Each asks for confirmation, reports its result, and appears in the audit log.

import { $, byClass, get, h, number, post, sum } from "./lib.js";

const WAIT_MS = 1_000;

/** Wires the buttons of the job's page; `page.now()` reads the job again after an action. */
export function offer(path, page) {
  const dialog = $("dialog");
  let job = null;

  $("do-pause").addEventListener("click", () => act($("do-pause"), "pause"));
  $("do-resume").addEventListener("click", () => act($("do-resume"), "resume"));
  $("do-workers").addEventListener("click", () => workersDialog());
  $("do-cancel").addEventListener("click", () => cancelDialog());
  $("do-retry").addEventListener("click", () => retryDialog());

  async function act(button, verb, body) {
    button.disabled = true;
    try {
      say((await post(`${path}/${verb}`, body)).done);
    } catch (error) {
      say(error.message, true);
    } finally {
      button.disabled = false;
      page.now();
    }
  }

  function say(message, bad = false) {
    show(bad ? "The action failed" : "Done", [h("p", {}, message)], [closer("Close", "primary")]);
  }

  function show(title, parts, buttons) {
    const form = h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), parts, h("div", { class: "buttons" }, buttons));
    form.addEventListener("submit", (event) => event.preventDefault());
    dialog.replaceChildren(form);
    if (!dialog.open) dialog.showModal();
    return form;
  }

  function closer(label, kind = null) {
    const button = h("button", { type: "button", class: kind }, label);
    button.addEventListener("click", () => dialog.close());
    return button;
  }

  function doer(label, kind, does) {
    const button = h("button", { type: "button", class: kind }, label);
    button.addEventListener("click", () => does(button));
    return button;
  }

  function cancelDialog() {
    show(`Cancel the workers of ${job.job_id}?`, [
      h("p", {}, "Slurm ends them at once. Committed results stay. Unfinished tasks start again when you submit the job again."),
      h("p", { class: "muted" }, "To let workers finish their tasks first, pause the job instead."),
    ], [closer("Keep them"), doer("Cancel the workers", "danger", (button) => act(button, "cancel"))]);
  }

  function workersDialog() {
    const field = h("input", { type: "number", id: "how-many", min: 1, max: 10000, value: 4, required: true });
    show("Add workers", [
      h("p", {}, "New workers are submitted beside the running ones, at most as many as there is work for."),
      h("label", { for: "how-many" }, "How many", field),
    ], [closer("Close"), doer("Add", "primary", (button) => {
      if (field.reportValidity()) act(button, "workers", { workers: Number(field.value) });
    })]);
    field.select();
  }

  function retryDialog() {
    const classes = { ...job.failed };
    for (const [name, tasks] of Object.entries(job.task_errors)) classes[name] = (classes[name] ?? 0) + tasks;
    const boxes = Object.entries(classes).sort((a, b) => b[1] - a[1]).map(([name, failures]) => {
      const box = h("input", { type: "checkbox", value: name, id: `class-${name}` });
      return h("label", { for: `class-${name}` }, box, name, h("span", { class: "n" }, number(failures)));
    });
    const chosen = () => boxes.map((label) => label.querySelector("input")).filter((box) => box.checked).map((box) => box.value);
    show("Retry failures", [
      h("p", {}, "Choose the error classes to try again. Without a choice, the job's retry policy decides."),
      h("fieldset", { class: "choices plain" }, h("legend", { class: "sr" }, "Error classes"), boxes),
    ], [closer("Close"), doer("Show the plan", "primary", (button) => showPlan(button, chosen()))]);
  }

  async function showPlan(button, classes) {
    button.disabled = true;
    button.textContent = "Reading the failures…";
    let plan;
    try {
      plan = await post(`${path}/retry/plan`, { classes });
    } catch (error) {
      say(error.message, true);
      return;
    }
    const nothing = plan.round === null;
    const rows = [
      ["Round", nothing ? "none" : String(plan.round)],
      ["Items tried again", sum(plan.items) ? `${number(sum(plan.items))}: ${byClass(plan.items)}` : "none"],
      ["Tasks run again as a whole", sum(plan.tasks) ? `${number(sum(plan.tasks))}: ${byClass(plan.tasks)}` : "none"],
      ["Left as they are", sum(plan.given_up) ? `${number(sum(plan.given_up))}: ${byClass(plan.given_up)}` : "none"],
      ["Resources", Object.entries(plan.slurm).map(([name, value]) => `${name}=${value}`).join(" ") || "as before"],
      ["Starts", plan.delay_s ? `after ${plan.delay_s} s` : "at once"],
    ];
    const facts = h("dl", { class: "facts", id: "plan" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    const notes = plan.notes.map((note) => h("p", { class: "note warn" }, note));
    show(nothing ? "Nothing to retry" : "The retry would do this", [facts, notes], [
      doer("Back", null, retryDialog),
      nothing ? closer("Close", "primary") : doer("Start the retry", "primary", (button) => start(button, classes)),
    ]);
  }

  async function start(button, classes) {
    button.disabled = true;
    try {
      let run = await post(`${path}/retry`, { classes });
      const lines = h("pre", { class: "log report", "aria-live": "polite" });
      show("Retrying", [h("p", { class: "muted" }, "The retry continues when you close this window."), lines], [closer("Close")]);
      while (run.state === "running" && dialog.open) {
        lines.textContent = run.said.join("\n") || "reading the failures";
        await new Promise((done) => setTimeout(done, WAIT_MS));
        run = await get(`${path}/retry`);
      }
      if (dialog.open && run.state === "failed") say(run.error, true);
      else if (dialog.open) say(outcome(run.result));
    } catch (error) {
      say(error.message, true);
    }
    page.now();
  }

  return {
    update(found, gone) {
      job = found;
      const left = (found.tasks.ready ?? 0) + (found.tasks.leased ?? 0) > 0;
      const halted = Boolean(found.paused || found.stop);
      $("do-pause").hidden = halted;
      $("do-pause").disabled = !left;
      $("do-resume").hidden = !halted && !gone;
      $("do-workers").disabled = halted || !left;
      $("do-cancel").disabled = !left;
      $("do-retry").disabled = left || !(sum(found.failed) + sum(found.task_errors));
      $("do-retry").title = left ? "When no task is left to run" : "";
    },
  };
}

function outcome(result) {
  if (result.round === null) return "There was nothing to retry.";
  const items = sum(result.items ?? {});
  const parts = [items ? `${number(items)} items` : "", result.tasks ? `${number(result.tasks)} whole tasks` : ""].filter(Boolean).join(" and ");
  const arrays = result.slurm_job_ids.length ? `, array ${result.slurm_job_ids.join(", ")}` : "";
  return `Round ${result.round}: ${parts || "started"}${arrays}${result.reattached ? " (it had started before)" : ""}.`;
}
