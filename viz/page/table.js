// Every row behind the charts: sorted by a click on a column, fifty at a time, exported as CSV.

const ROW_COLUMNS = [
  ["method", 0, (r) => D.methods[r.m].recipe], ["family", 0, (r) => D.methods[r.m].family], ["context", 1, (r) => r.context], ["batch", 1, (r) => r.batch ?? r.flight], ["throughput", 1, (r) => r.value],
  ["low", 1, (r) => r.low], ["high", 1, (r) => r.high], ["over plain", 1, (r) => r.gain], ["same batch or decode only", 1, (r) => r.decode], ["size factor", 1, (r) => r.size], ["cache GiB", 1, (r) => r.cache / 2 ** 30], ["peak GiB", 1, (r) => r.peak / 2 ** 30],
  ["step ms", 1, (r) => 1e3 * r.step], ["bound by", 0, (r) => boundName(r.bound)], ["evidence", 0, (r) => evidenceName(r.evidence)],
];
const rowsView = { by: 4, down: true, page: 0, what: "question" };

function tableRows() {
  if (rowsView.what === "question") return questionRows().rows;
  return stepsInScopeOfPair().map(pointRow);
}
function stepsInScopeOfPair() {
  const scope = state.scope;
  state.scope = "pair";
  const list = stepsInScope();
  state.scope = scope;
  return list;
}

function drawRows() {
  const box = $("#rows");
  if (!box) return;
  const rows = tableRows(), [, numeric, get] = ROW_COLUMNS[rowsView.by];
  const keyed = rows.map((r) => [get(r), r]);
  keyed.sort(([x], [y]) => {
    if (!known(x) || !known(y)) return known(x) ? -1 : known(y) ? 1 : 0;
    const order = numeric ? x - y : String(x).localeCompare(String(y));
    return rowsView.down ? -order : order;
  });
  const pages = Math.max(1, Math.ceil(keyed.length / 50));
  rowsView.page = Math.min(rowsView.page, pages - 1);
  const shown = keyed.slice(50 * rowsView.page, 50 * rowsView.page + 50).map(([, r]) => r);
  box.innerHTML = `<div class="tools"><select id="rows-what" aria-label="which rows">${option("question", `settings that answer the question (${questionRows().rows.length})`, rowsView.what === "question")}${D.points.context.length ? option("steps", `every drawn decode step of this model and GPU (${whole(stepsInScopeOfPair().length)})`, rowsView.what === "steps") : ""}</select>
    <button id="rows-csv">Save as CSV</button><span class="grow"></span><button id="rows-back" ${rowsView.page === 0 ? "disabled" : ""} aria-label="previous page">‹</button><span>${whole(rowsView.page + 1)} of ${whole(pages)}</span><button id="rows-on" ${rowsView.page + 1 >= pages ? "disabled" : ""} aria-label="next page">›</button></div>
    <div class="scroll" tabindex="0" role="region" aria-label="rows, scrolls"><table id="rows-table"><thead><tr>${ROW_COLUMNS.map(([name, n], i) => `<th scope="col"${n ? ' class="n"' : ""} aria-sort="${rowsView.by === i ? (rowsView.down ? "descending" : "ascending") : "none"}"><button data-by="${i}">${name === "throughput" ? (rowsView.what === "question" ? valueName() : "tokens/s") : name === "same batch or decode only" ? (rowsView.what === "question" ? sameName() : "same batch") : name}</button></th>`).join("")}<th></th></tr></thead>
    <tbody>${shown.map((r, k) => `<tr>${ROW_COLUMNS.map(([name, n, cell], i) => { const v = cell(r); return i === 0 ? `<th scope="row">${swatch(r.m, slotOf(r.m), isHatched(r))} ${esc(v)}</th>` : `<td${n ? ' class="n"' : ""}>${n ? (name === "context" && known(v) ? tokens(v) : num(v)) : esc(v)}</td>`; }).join("")}<td class="do"><button data-copy-row="${k}" title="copy the command line">copy</button></td></tr>`).join("")}</tbody></table></div>`;
  $("#rows-what").onchange = (e) => { rowsView.what = e.target.value; rowsView.page = 0; drawRows(); };
  $("#rows-back").onclick = () => { --rowsView.page; drawRows(); };
  $("#rows-on").onclick = () => { ++rowsView.page; drawRows(); };
  $("#rows-csv").onclick = () => exportCsv([...ROW_COLUMNS.map(([name]) => name), "command"], keyed.map(([, r]) => [...ROW_COLUMNS.map(([, , cell]) => cell(r)), commandOf(r)]), "kvatlas-rows.csv");
  $("#rows-table").onclick = (e) => {
    const b = e.target.closest("button");
    if (!b) return;
    if (b.dataset.copyRow) return copyText(commandOf(shown[Number(b.dataset.copyRow)]));
    const i = Number(b.dataset.by);
    rowsView.down = rowsView.by === i ? !rowsView.down : ROW_COLUMNS[i][1] === 1;
    rowsView.by = i;
    rowsView.page = 0;
    drawRows();
    $(`[data-by="${i}"]`).focus();
  };
}
