// Dark or light: the system's choice, until the user presses the button.

/** @param {HTMLButtonElement} button */
export function startTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const chosen = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    try {
      localStorage.setItem("sightfix-theme", chosen);
    } catch {
      // The choice then lasts for this page only.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}
