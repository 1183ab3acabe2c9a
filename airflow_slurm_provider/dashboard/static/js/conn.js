// Choosing another connection leads to its jobs at once.
document.getElementById("conn")?.addEventListener("change", (event) => event.target.form.submit());
