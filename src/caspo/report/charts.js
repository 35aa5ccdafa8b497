// Draws every chart of the page in the colours of the current theme, and again when the theme changes.
"use strict";
(() => {
  const css = () => getComputedStyle(document.documentElement);
  const themed = (value, style) => {
    if (typeof value === "string") return value.startsWith("@") ? style.getPropertyValue("--" + value.slice(1)).trim() : value;
    if (Array.isArray(value)) return value.map((item) => themed(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
    }
    return value;
  };
  const draw = () => {
    const style = css();
    for (const plot of document.querySelectorAll(".plot")) {
      const figure = themed(JSON.parse(document.getElementById(plot.id + "-figure").textContent), style);
      Plotly.react(plot, figure.data, figure.layout, { responsive: true, displayModeBar: false });
    }
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
