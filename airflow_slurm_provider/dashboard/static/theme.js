// Sets the colours before the first paint: what the user chose, else those of Airflow around
// us, else what the system prefers.
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem("slurm-theme");
    } catch {
      return null; // storage is off
    }
  };
  const around = () => (window.parent === window ? null : window.parent.document.documentElement);
  const framed = () => ["dark", "light"].find((each) => around()?.classList.contains(each));
  const apply = () => {
    root.dataset.theme = chosen() || framed() || (dark.matches ? "dark" : "light");
    window.dispatchEvent(new Event("themechange"));
  };
  apply();
  dark.addEventListener("change", apply);
  window.addEventListener("storage", apply);
  // Pages of the same origin alone may frame us, so the frame can be looked at.
  if (around()) new MutationObserver(apply).observe(around(), { attributeFilter: ["class"] });
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      const other = root.dataset.theme === "dark" ? "light" : "dark";
      button.setAttribute("aria-label", `Switch to ${other} colours`);
      button.title = button.getAttribute("aria-label");
    };
    label();
    button.addEventListener("click", () => {
      const other = root.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("slurm-theme", other);
      } catch {
        // Holds for this page only.
      }
      root.dataset.theme = other;
      window.dispatchEvent(new Event("themechange"));
      label();
    });
  });
})();
