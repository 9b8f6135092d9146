(() => {
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const root = document.querySelector(".explorer");
  const heads = [...root.querySelectorAll("th")].map((head) => head.dataset.key);
  let by = "accuracy", down = true;
  const text = (row, key) => {
    const value = row[key];
    if (value === null || value === undefined) return "–";
    if (key === "method" && row.changed) return `${value} (${row.changed})`;
    const short = ["accuracy", "std", "head", "medium", "tail", "start", "random"];
    return short.includes(key) ? value.toFixed(1) : String(value);
  };
  const order = (a, b) => {
    const [x, y] = [a[by], b[by]];
    if (x === null || y === null) return (x === null) - (y === null);
    const sign = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
    return down ? -sign : sign;
  };
  const draw = () => {
    const wanted = [...root.querySelectorAll("select")].filter((one) => one.value);
    const shown = rows.filter((r) => wanted.every((o) => String(r[o.dataset.key]) === o.value));
    const body = root.querySelector("tbody");
    body.replaceChildren(...shown.sort(order).map((row) => {
      const line = document.createElement("tr");
      for (const key of heads) line.insertCell().textContent = text(row, key);
      return line;
    }));
    root.querySelector(".count").textContent = `${shown.length} of ${rows.length} measurements`;
  };
  root.querySelectorAll("select").forEach((one) => one.addEventListener("change", draw));
  root.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
    const key = button.parentElement.dataset.key;
    down = key === by ? !down : true;
    by = key;
    draw();
  }));
  draw();
})();
