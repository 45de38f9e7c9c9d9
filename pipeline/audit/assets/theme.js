/* A button with `data-theme-toggle` switches dark and light; the choice is remembered where the browser allows it. */
"use strict";

(() => {
  const root = document.documentElement;
  const memory = { get: () => null, set: () => {} };
  try {
    memory.get = localStorage.getItem.bind(localStorage, "rpt-theme");
    memory.set = localStorage.setItem.bind(localStorage, "rpt-theme");
  } catch { /* a page from a file may have no storage */ }
  const chosen = memory.get();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-theme-toggle]")) return;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
    memory.set(root.dataset.theme);
  });
})();
