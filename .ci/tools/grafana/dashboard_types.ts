// What deploy/grafana/dashboard.json may hold: Grafana's own types, narrowed to the panels that it uses, because
// Grafana's type of a panel leaves options, custom fields and queries open.
import type { Dashboard, DataQuery, FieldConfig, FieldConfigSource, Panel, RowPanel, VariableModel } from "@grafana/schema";
import type { Options as StatOptions } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type {
  FieldConfig as TimeSeriesField,
  Options as TimeSeriesOptions,
} from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// JSON has the words of an enum, not its members.
type Plain<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

// Grafana publishes no type for a Prometheus query; these are the fields that its editor writes.
type Query = Pick<DataQuery, "refId" | "hide"> & { expr: string; legendFormat: string; range: boolean; instant: boolean };

type PanelOf<Type extends string, Options, Custom> = Plain<
  Omit<Panel, "type" | "options" | "fieldConfig" | "targets"> & {
    type: Type;
    title: string;
    options: Options;
    fieldConfig: Omit<FieldConfigSource, "defaults"> & { defaults: Omit<FieldConfig, "custom"> & { custom?: Custom } };
    targets: Query[];
  }
>;

// A variable's query is open in Grafana's type, too.
type Variable = Plain<Omit<VariableModel, "query"> & { query: string | { query: string; refId: string } }>;

export type Checked = Plain<Omit<Dashboard, "panels" | "templating">> & {
  templating: { list: Variable[] };
  panels: (
    | Plain<RowPanel>
    | PanelOf<"stat", StatOptions, never>
    | PanelOf<"timeseries", TimeSeriesOptions, TimeSeriesField>
  )[];
};
