// Applies the stored colour scheme. A classic script: it must run before the page is painted.
try {
  const chosen = localStorage.getItem("sightfix-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be forbidden; the system's colours are taken then.
}
